"""What the forward objective asks of a rule: a loss of surrogate errors and advantages.

Shapes: B rows, ... latent axes. Rows without latents suffice for `loss`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Samples
from thalweg.objectives.contract import Scalars, Unit

Error = Callable[[Tensor], Tensor]
"""The surrogate error E of a velocity at these rows: (B, ...) -> (B,)."""

Terms = tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]


class Rule(Protocol):
    @property
    def unit(self) -> Unit:
        """Which rows a loss term depends on."""
        ...

    @property
    def compared(self) -> tuple[str, ...]:
        """Named weights that the policy is compared with."""
        ...

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        """The scalars of each pass, differentiable in `velocity`."""
        ...

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        """Terms before weighting: one a row, or a wider unit's in each of its rows; and what to report."""
        ...
