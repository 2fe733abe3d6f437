"""Adjoint matching (Domingo-Enrich et al. 2024, arXiv:2409.08861; microsoft/soc-fine-tuning-sd): regress the
velocity on that of the tilted density p* ~ p_ref exp(λ r).

    L = <(J/s)² (v_θ - v_ref - (s²/J) a)²>,      a = -λ dr/dx0 at data, then the lean adjoint

Trajectories are drawn by a memoryless kernel, whose samples do not depend on their initial noise; the lean
adjoint follows them under the reference. In the limit of many steps s²/J = σ/(1-σ), the paper's. Here s and
J are the step's own, and a that of the state it leads to, which is exact control of the discrete chain and
finite at σ = 1. Differs from the paper: a mean over latent elements and chosen steps, not a sum; that scales
the loss and leaves its minimum. Differs from the code: no sample is dropped for a large loss, see
`largest_shift`. Shapes: B rows, n chosen steps, ... latent axes.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.adjoint import adjoints, reward_slope
from thalweg.objectives.contract import CURRENT, Unit, VelocityField
from thalweg.objectives.pathwise_rows import draws, levels_of, paths_of
from thalweg.objectives.velocity_regression import Look, regressed, rms, shortened


class AdjointMatching(Part):
    """One term a trajectory."""

    kind: Literal["adjoint_matching"] = "adjoint_matching"
    reward_weight: PositiveFloat
    """λ: how far the density is tilted; it has the unit of 1 / reward, so there is no default."""
    num_steps: int = Field(default=4, ge=1)
    """n: at how many drawn steps of a trajectory the loss is taken, one from each of n equal runs."""
    largest_shift: PositiveFloat | None = None
    """Shifts of the target whose root mean square is larger are scaled down to it; None takes them as they
    are.
    """
    recompute: bool = False
    """Keep no activations of the n passes: the memory of one, for another forward each."""
    reference: str = "reference"
    """Named weights that are tilted."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.reference,)

    @property
    def reads_reward(self) -> bool:
        return True

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        sigmas, drawn = levels_of(forest), len(forest.levels) - 2  # the last step draws nothing
        runs = torch.arange(drawn).tensor_split(self.num_steps)
        shares = [address.uniform((self.num_steps,)).tolist() for address in draws(forest, seed, iteration)]
        steps = [[int(run[int(u * len(run))]) for run, u in zip(runs, of, strict=True)] for of in shares]
        rows = paths_of(forest, advantages, [forest.paths], [sigmas.expand(len(forest.leaves), -1)])
        k, std = _along(forest, "k"), _along(forest, "std")
        return replace(rows, k=k, std=std, chosen=torch.tensor(steps).view(len(rows), self.num_steps))

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        count = self.num_steps
        return count + steps - 1, {self.reference: count, CURRENT: count if self.recompute else 0}

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        assert rows.chosen is not None and rows.k is not None and rows.std is not None
        reward, slope = reward_slope(field, rows.states[:, -1])
        found = torch.stack(adjoints(field, self.reference, rows, -self.reward_weight * slope), 1)
        every = torch.arange(len(rows))
        looks = []
        for step in rows.chosen.T:
            x, sigma, sigma_next = (
                rows.states[every, step],
                rows.sigmas[every, step],
                rows.sigmas[every, step + 1],
            )
            k, std = rows.k[every, step + 1], rows.std[every, step + 1]
            sensitivity = sigma - sigma_next + (sigma_next - k) * (1 - sigma)
            wanted = over_latents(std**2 / sensitivity, x) * found[every, step]
            looks.append(Look(x, sigma, shortened(wanted, self.largest_shift), (sensitivity / std) ** 2))
        terms, report = regressed(field, self.reference, looks, self.recompute)
        report |= {"path_reward": reward.cpu(), "adjoint_size": rms(found.flatten(1))}
        return terms * rows.weight.to(terms), report


def _along(forest: Forest, name: Literal["k", "std"]) -> Float[Tensor, "B M"]:
    """That number of the step to each level, for every leaf."""
    node, values = forest.leaf_node, list[Tensor]()
    for level in forest.levels[::-1]:
        values.append(getattr(level, name)[node])
        node = level.parent[node]
    return torch.stack(values[::-1], 1)
