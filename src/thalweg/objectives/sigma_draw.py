"""At which noise levels a forward objective looks at a sample. Shapes: n levels of one sample, N of a
rollout.

Levels are shifted towards noise by S u / (1 + (S-1) u); S = 1 leaves them as drawn.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from thalweg.core.noise import Address
from thalweg.core.part import Part

Level = Annotated[float, Field(ge=0, le=1)]


def _shifted(u: Float[Tensor, "*n"], shift: float) -> Float[Tensor, "*n"]:
    return shift * u / (1 + (shift - 1) * u)


class Stratified(Part):
    """One level from each of n equal strata of [sigma_min, sigma_max], then shifted towards noise."""

    kind: Literal["stratified"] = "stratified"
    num_sigmas: PositiveInt = 3
    """n: noise levels, and so network passes with gradient, of each sample."""
    sigma_min: Level = 0.02
    """A higher one trains the noisy part alone."""
    sigma_max: Level = 1.0
    shift: PositiveFloat = 1.0
    """S."""

    @property
    def lowest(self) -> float:
        """No level is below it."""
        return float(_shifted(torch.tensor(self.sigma_min, dtype=torch.float64), self.shift))

    def draw(self, address: Address, grid: Float[Tensor, " N"]) -> Float[Tensor, " n"]:
        places = (address.uniform((self.num_sigmas,)) + torch.arange(self.num_sigmas)) / self.num_sigmas
        return _shifted(self.sigma_min + (self.sigma_max - self.sigma_min) * places, self.shift)


class Grid(Part):
    """Levels of the rollout: one from each of n equal runs of its noisy part, from noise to data."""

    kind: Literal["grid"] = "grid"
    num_sigmas: PositiveInt = 3
    """n; as many as the noisy part has levels takes them all."""
    noisy_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the levels, counted from noise and rounded up, that is drawn from."""
    skip: int = Field(default=0, ge=0)
    """How many of the noisiest levels are left out."""

    def candidates(self, levels: int) -> range:
        """Which of so many levels of a rollout may be drawn."""
        # Rounded first: 0.9 of 10 levels is 9, although 0.9 * 10 may lie above.
        return range(self.skip, max(self.skip, math.ceil(round(self.noisy_fraction * levels, 6))))

    def draw(self, address: Address, grid: Float[Tensor, " N"]) -> Float[Tensor, " n"]:
        runs = torch.tensor(self.candidates(len(grid))).tensor_split(self.num_sigmas)
        places = address.uniform((self.num_sigmas,)).tolist()
        return torch.stack(
            [grid[run[int(place * len(run))]] for run, place in zip(runs, places, strict=True)]
        )


class LogitNormal(Part):
    """sigmoid(mean + std z), z ~ N(0, 1), then shifted: levels in the middle, as SD3 was trained."""

    kind: Literal["logit_normal"] = "logit_normal"
    num_sigmas: PositiveInt = 3
    """n, drawn one by one."""
    mean: float = 0.0
    std: PositiveFloat = 1.0
    shift: PositiveFloat = 1.0
    """S."""
    sigma_min: Level = 0.0
    """Levels below it, after the shift, are lifted to it."""

    @property
    def lowest(self) -> float:
        """No level is below it."""
        return self.sigma_min

    def draw(self, address: Address, grid: Float[Tensor, " N"]) -> Float[Tensor, " n"]:
        drawn = (self.mean + self.std * address.normal((self.num_sigmas,))).sigmoid()
        return _shifted(drawn, self.shift).clamp(min=self.sigma_min)


Sigmas = Annotated[Stratified | Grid | LogitNormal, Field(discriminator="kind")]
