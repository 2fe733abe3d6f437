"""What a reward gradient asks of a route. Shapes: B rows, ... latent axes."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.values import Paths
from thalweg.objectives.contract import VelocityField

Sample = tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]
"""Finished latents with a gradient to the weights, and how much each counts in the loss."""


@runtime_checkable
class RouteContract(Protocol):
    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        """Where the ways begin, one or several a sample."""
        ...

    def passes(self, steps: int) -> tuple[int, int]:
        """Network passes of a sample of so many steps: with gradient, and others."""
        ...

    def follow(self, field: VelocityField, rows: Paths) -> Sample:
        """Walk, with gradient."""
        ...
