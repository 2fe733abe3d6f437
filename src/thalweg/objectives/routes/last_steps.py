"""The last K steps of sampling with a gradient: DRaFT-K (Clark et al. 2023, arXiv:2309.17400), AlignProp
(Prabhudesai et al. 2023, arXiv:2310.03739), DRTune (`detach_input`).

    x' = x + (σ' - σ) v_θ(x, σ),      K times, down to x0

The states before are the rollout's, so K = N is the gradient through all of sampling. DRaFT-LV takes the last
step alone, on several copies of the finished sample that are noised anew (`copies`). Shapes: B rows, ...
latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address, normals
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow import LinearPath
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import VelocityField
from thalweg.objectives.pathwise_rows import levels_of, paths_of
from thalweg.objectives.routes.contract import Walk

PATH = LinearPath()


class LastSteps(Part):
    """Sampling is taken up again K steps before its end."""

    kind: Literal["last_steps"] = "last_steps"
    num_steps: int | None = Field(default=1, ge=1)
    """K; None for all."""
    drawn: bool = False
    """Draw K anew in every iteration, from 1 up to `num_steps` (AlignProp)."""
    copies: int = Field(default=0, ge=0)
    """In place of the rollout's state, begin from so many copies of the sample, noised anew; DRaFT-LV has
    K = 1.
    """
    detach_input: bool = False
    """No gradient through the input of the network, only through what it adds (DRTune)."""
    recompute: bool = True
    """Keep only the state of each step and compute activations again: the memory of one step, for another
    forward."""

    @model_validator(mode="after")
    def _consistent(self) -> "LastSteps":
        if self.copies and self.num_steps != 1:
            raise ValueError(
                f"copies={self.copies} are noised to the level of the last step; give num_steps=1"
            )
        return self

    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        sigmas = levels_of(forest)
        most = len(sigmas) - 1 if self.num_steps is None else self.num_steps
        count = most
        if self.drawn:
            draw = Address(seed, "selection", iteration, path=(5,))
            count = 1 + int(float(draw.uniform((1,))) * most)
        way = sigmas[-1 - count :].expand(len(forest.leaves), -1)
        if not self.copies:
            start = forest.paths[:, -1 - count]
            return paths_of(forest, advantages, [start[:, None]], [way])
        x0, leaves = forest.latents, forest.leaves
        columns = (leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.sample.tolist())
        starts = []
        for copy in range(self.copies):
            owners = [
                Address(seed, "forward noise", iteration, p, g, (s,), copy)
                for p, g, s in zip(*columns, strict=True)
            ]
            noise = normals(owners, x0.shape[1:]).to(x0.device)
            starts.append(PATH.corrupt(x0, noise, way[:, 0])[:, None])
        return paths_of(forest, advantages, starts, [way] * self.copies)

    @property
    def walks(self) -> int:
        return max(self.copies, 1)

    def passes(self, steps: int) -> tuple[int, int]:
        count = (steps if self.num_steps is None else self.num_steps) * self.walks
        return count, count if self.recompute else 0

    def start(self, rows: Paths) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return rows.states[:, 0], rows.sigmas[:, 0]

    def follow(self, field: VelocityField, rows: Paths) -> Walk:
        x, velocities = rows.states[:, 0], list[Tensor]()
        for sigma, sigma_next in zip(rows.sigmas[:, :-1].T, rows.sigmas[:, 1:].T, strict=True):
            at = x.detach() if self.detach_input else x
            velocities.append(field.velocity(at, sigma, recompute=self.recompute))
            x = field.as_stored(x + over_latents(sigma_next - sigma, x) * velocities[-1])
        return Walk(x, torch.ones_like(rows.weight), velocities[0])
