"""Samples whose every step is the best of several, by a reward of noisy states: step-wise sampling
(DRM, arXiv:2605.25661). Works without training, and after it.

    x' = the candidate with the highest r(x', sigma'),      candidates ~ p(. | x);      last step: Euler's

Shapes: n samples, ... latent axes.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.noise import Address, normals
from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.flow import FlowSDE, Kernel, flow_norm
from thalweg.models.contract import Policy
from thalweg.rollout import Root
from thalweg.rollout.guidance import Value


class Stepwise(Part):
    """How many candidates, drawn how and judged by what."""

    reward: str
    """Name of a reward of the recipe that scores noisy states."""
    num_candidates: int = Field(default=6, ge=1)
    """K: draws for each next state; 1 draws without choosing."""
    kernel: Kernel = FlowSDE()


@torch.no_grad()
def sample_stepwise(
    policy: Policy,
    prompts: Sequence[Prompt],
    roots: Sequence[Root],
    how: Stepwise,
    value: Value,
    sigmas: Float[Tensor, " M"],
    *,
    seed: int,
    micro_batch: int,
) -> Float[Tensor, "n ..."]:
    """Finished latents, one for each root."""

    def starts(purpose: str, path: tuple[int, ...] = (), step: int = 0) -> Float[Tensor, "n ..."]:
        addresses = [Address(seed, purpose, 0, r.prompt_slot, r.seed_group, path, step) for r in roots]  # type: ignore[arg-type]
        return normals(addresses, policy.latent_shape).to(policy.device)

    rows = torch.tensor([root.condition for root in roots], dtype=torch.int64)
    condition = policy.encode(prompts).index(rows)
    asked = [prompts[row] for row in rows.tolist()]
    x = starts("initial") * flow_norm(sigmas[0])
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocity = torch.cat(
            [
                policy.velocity(x[part], sigma.expand(len(part)), condition.index(part))
                for part in torch.arange(len(x)).split(micro_batch)
            ]
        )
        if step == len(sigmas) - 2:
            return x + (sigma_next - sigma) * velocity
        transition = how.kernel.transition(x, velocity, sigma, sigma_next)
        best = torch.full((len(x),), -torch.inf, device=x.device)
        chosen = x
        for number in range(how.num_candidates):
            candidate = transition.sample(starts("transition", (number,), step))
            worth = value(candidate, sigma_next.expand(len(x)), asked).to(x.device)
            better = (worth > best).view(-1, *[1] * (x.ndim - 1))
            chosen, best = torch.where(better, candidate, chosen), torch.maximum(worth, best)
        x = chosen
    raise AssertionError("a schedule has at least one step")
