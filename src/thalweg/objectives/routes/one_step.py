"""ReFL: one late step, and from there straight to the clean sample (Xu et al. 2023, arXiv:2304.05977;
THUDM/ImageReward).

    x̂0 = x_σ - σ v_θ(x_σ, σ)

x_σ is a state of the rollout, without gradient. Differs from the paper: its model predicts noise, ours a
velocity. Shapes: B rows, ... latent axes.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow import x0_from_velocity
from thalweg.objectives.contract import VelocityField
from thalweg.objectives.pathwise_rows import draws, levels_of, paths_of
from thalweg.objectives.routes.contract import Walk


class OneStep(Part):
    """The gradient goes through a single pass; layout, which early steps decide, cannot change."""

    kind: Literal["one_step"] = "one_step"
    late_fraction: float = Field(default=0.25, gt=0, le=1)
    """The step is drawn among this share of the steps, counted from data and rounded up; the authors' 10 of
    40.
    """

    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        states, sigmas = forest.paths, levels_of(forest)
        steps = len(sigmas) - 1
        late = math.ceil(round(self.late_fraction * steps, 6))
        share = torch.cat([address.uniform((1,)) for address in draws(forest, seed, iteration)])
        step = steps - late + (share * late).long()
        here = states[torch.arange(len(states)), step.to(states.device)]
        return paths_of(forest, advantages, [here[:, None]], [sigmas[step][:, None]])

    @property
    def walks(self) -> int:
        return 1

    def passes(self, steps: int) -> tuple[int, int]:
        return 1, 0

    def start(self, rows: Paths) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return rows.states[:, 0], rows.sigmas[:, 0]

    def follow(self, field: VelocityField, rows: Paths) -> Walk:
        x, sigma = self.start(rows)
        velocity = field.velocity(x, sigma)
        return Walk(x0_from_velocity(x, velocity, sigma), torch.ones_like(rows.weight), velocity)
