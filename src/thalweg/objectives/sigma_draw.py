"""At which noise levels a forward objective looks at a sample. Shapes: n levels of one sample."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from thalweg.core.noise import Address
from thalweg.core.part import Part

Level = Annotated[float, Field(ge=0, le=1)]


class Stratified(Part):
    """One level from each of n equal strata of [sigma_min, sigma_max], then shifted towards noise."""

    kind: Literal["stratified"] = "stratified"
    num_sigmas: PositiveInt = 3
    """n: noise levels, and so network passes with gradient, of each sample."""
    sigma_min: Level = 0.02
    sigma_max: Level = 1.0
    shift: PositiveFloat = 1.0
    """S of S u / (1 + (S-1) u); 1 leaves the levels as drawn."""

    def draw(self, address: Address) -> Float[Tensor, " n"]:
        places = (address.uniform((self.num_sigmas,)) + torch.arange(self.num_sigmas)) / self.num_sigmas
        u = self.sigma_min + (self.sigma_max - self.sigma_min) * places
        return self.shift * u / (1 + (self.shift - 1) * u)
