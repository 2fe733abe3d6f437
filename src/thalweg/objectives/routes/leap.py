"""LeapAlign: two leaps over the rollout's own states (2026, arXiv:2604.15311).

    x̂_j = x_k - (k-j) v_θ(x_k, k),       x_j' = x̂_j + sg(x_j - x̂_j),                          k > j
    x̂_0 = x_j' - j v_θ(α x_j' + (1-α) sg x_j', j),      x_0' = x̂_0 + sg(x_0 - x̂_0)

The values are the real states and the real sample; only the gradient leaps,

    dx_0'/dθ = -j dv(x_j) - (k-j) dv(x_k) + α j (k-j) (dv(x_j)/dx) dv(x_k)

A term counts by 1 / (max(d_j, τ) + max(d_0, τ)), d = <|real - leap|>. k and j are noise levels of the rollout
(the paper's t). Shapes: B rows, ... latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import VelocityField
from thalweg.objectives.pathwise_rows import draws, levels_of, paths_of
from thalweg.objectives.routes.contract import Walk


class Leap(Part):
    """Early steps are reached in two passes, whatever the number of steps."""

    kind: Literal["leap"] = "leap"
    input_gradient: float = Field(default=0.3, ge=0, le=1)
    """α: share of the gradient that goes through the input of the second pass."""
    floor: PositiveFloat = 0.1
    """τ: leaps that miss the real states by less all count the same."""

    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        states, sigmas = forest.paths, levels_of(forest)
        # Two different steps; the last level, 0, is the sample itself.
        chosen = [address.permutation(len(sigmas) - 1)[:2] for address in draws(forest, seed, iteration)]
        steps = torch.stack(chosen).sort(1).values
        ends = torch.cat([steps, torch.full((len(steps), 1), len(sigmas) - 1)], 1)
        three = states[torch.arange(len(states))[:, None], ends.to(states.device)]
        return paths_of(forest, advantages, [three], [sigmas[ends]])

    @property
    def walks(self) -> int:
        return 1

    def passes(self, steps: int) -> tuple[int, int]:
        return 2, 0

    def start(self, rows: Paths) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return rows.states[:, 0], rows.sigmas[:, 0]

    def follow(self, field: VelocityField, rows: Paths) -> Walk:
        (x_k, x_j, x_0), (k, j) = rows.states.unbind(1), rows.sigmas[:, :2].unbind(1)
        velocity = field.velocity(x_k, k)
        leap_j = x_k - over_latents(k - j, x_k) * velocity
        at_j = leap_j + (x_j - leap_j).detach()
        inside = self.input_gradient * at_j + (1 - self.input_gradient) * at_j.detach()
        leap_0 = at_j - over_latents(j, x_j) * field.velocity(inside, j)
        missed = [
            (real - leap).detach().flatten(1).abs().mean(1).clamp(min=self.floor)
            for real, leap in ((x_j, leap_j), (x_0, leap_0))
        ]
        return Walk(leap_0 + (x_0 - leap_0).detach(), 1 / (missed[0] + missed[1]), velocity)
