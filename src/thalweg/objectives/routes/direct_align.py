"""Direct-Align, the route of SRPO (2025, arXiv:2509.06942; Tencent-Hunyuan/SRPO): one step at a high noise
level, undone exactly with the noise that the sample came from.

    x_σ = σ z + (1-σ) x0,        high > low
    denoise (row 0):  x' = x_high + (low - high) v_θ(x_high, high),     x̂0 = (x' - low z) / (1 - low)
    invert  (row 1):  x' = x_low + (high - low) v_θ(x_low, low),        x̂0 = (x' - high z) / (1 - high)

Where v_θ = z - x0, both are x0; their gradients have opposite signs. z is the rollout's initial noise.
Differs from the code: levels are drawn evenly from a shifted interval, not from a grid of 1000. Shapes: B
rows, ... latent axes.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow import LinearPath, flow_norm
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import VelocityField
from thalweg.objectives.pathwise_rows import draws, levels_of, paths_of
from thalweg.objectives.routes.contract import Walk

PATH = LinearPath()
Level = Annotated[float, Field(gt=0, lt=1)]


class DirectAlign(Part):
    """Two rows a sample, one for each direction; both reach the early steps in one pass."""

    kind: Literal["direct_align"] = "direct_align"
    sigma_max: Level = 0.95
    """Largest noise level; at 1 nothing of the sample is left."""
    largest_step: Level = 0.1
    """Largest share of the schedule between the two levels, before the shift; the authors' 10%."""
    shift: PositiveFloat = 1.0
    """Levels are shifted towards noise by S u / (1 + (S-1) u)."""

    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        states = forest.paths
        # A rollout that starts below σ = 1 starts from scaled noise.
        ends = torch.stack([states[:, 0] / flow_norm(levels_of(forest)[0]), states[:, -1]], 1)
        u = torch.stack([address.uniform((2, 2)) for address in draws(forest, seed, iteration)])
        far = self.largest_step * (1 - u[..., 1])  # above 0: both levels the same would be no step
        highest = self.sigma_max / (self.shift - (self.shift - 1) * self.sigma_max)
        places = far + (highest - far).clamp(min=0) * u[..., 0]
        pair = torch.stack([places, places - far], -1)
        sigmas = self.shift * pair / (1 + (self.shift - 1) * pair)
        return paths_of(forest, advantages, [ends, ends], list(sigmas.unbind(1)))

    @property
    def walks(self) -> int:
        return 2

    def passes(self, steps: int) -> tuple[int, int]:
        return 2, 0

    def start(self, rows: Paths) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        (noise, x0), (high, low) = rows.states.unbind(1), rows.sigmas.unbind(1)
        here = torch.where(rows.step == 1, low, high)
        return PATH.corrupt(x0, noise, here), here

    def follow(self, field: VelocityField, rows: Paths) -> Walk:
        (x, here), (high, low) = self.start(rows), rows.sigmas.unbind(1)
        noise, there = rows.states[:, 0], torch.where(rows.step == 1, high, low)
        velocity = field.velocity(x, here)
        stepped = x + over_latents(there - here, x) * velocity
        clean = (stepped - over_latents(there, x) * noise) / over_latents(1 - there, x)
        return Walk(clean, torch.ones_like(rows.weight), velocity)
