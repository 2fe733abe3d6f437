"""What a reward gradient asks of a route. Shapes: B rows, ... latent axes."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.values import Paths
from thalweg.objectives.contract import VelocityField


@dataclass(frozen=True)
class Walk:
    """What came of walking, with a gradient to the weights."""

    x0: Float[Tensor, "B ..."]
    """Finished latents."""
    count: Float[Tensor, " B"]
    """How much each counts in the loss."""
    velocity: Float[Tensor, "B ..."]
    """Where the walk began."""


@runtime_checkable
class RouteContract(Protocol):
    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        """Where the ways begin, one or several a sample."""
        ...

    @property
    def walks(self) -> int:
        """How many ways a sample has."""
        ...

    def passes(self, steps: int) -> tuple[int, int]:
        """Network passes of a sample of so many steps: with gradient, and others."""
        ...

    def start(self, rows: Paths) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        """x and sigma of the first pass."""
        ...

    def follow(self, field: VelocityField, rows: Paths) -> Walk:
        """Walk, with gradient."""
        ...
