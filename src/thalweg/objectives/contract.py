"""What training asks of an objective.

An objective sees the network through scalars of single passes only: a log-probability, a regression error. It
names the unit its loss spans, and a function from scalars to loss terms, one a unit; training evaluates the
scalars, in one sweep where a unit fits a micro-batch and else in two (`training.backward`).

Shapes: B rows (network passes), U units, ... latent axes.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.values import Samples, Transitions

Unit = Literal["row", "sample", "pair", "group"]
"""What one loss term spans: a single network pass, all passes of a sample, those of the best and the worst
sample of a prompt, or those of all its samples. Groups are whole in every update and on any number of
processes.
"""

Scalars = dict[str, Float[Tensor, " B"]]


@runtime_checkable
class ObjectiveContract(Protocol):
    @property
    def unit(self) -> Unit:
        """Which passes a loss term depends on."""
        ...

    @property
    def anchors(self) -> tuple[str, ...]:
        """Named weights whose velocity is needed at the same points, without gradient."""
        ...

    def experience(
        self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int
    ) -> Transitions | Samples:
        """The rows to train on."""
        ...

    def inputs(self, rows: Any) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Where the network is evaluated: x and sigma."""
        ...

    def measure(
        self,
        rows: Any,
        x: Float[Tensor, "B ..."],
        velocity: Float[Tensor, "B ..."],
        anchors: Mapping[str, Float[Tensor, "B ..."]],
    ) -> Scalars:
        """The scalars of each pass, differentiable in `velocity`."""
        ...

    def loss(self, scalars: Scalars, rows: Any) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        """Weighted loss terms, one a unit or the unit's in each of its rows, and what to report of each.

        Rows of the units `pair` and `group` come without latents, and from all processes.
        """
        ...


@runtime_checkable
class ReadsMeans(Protocol):
    """An objective that may compare with the means of the rollout's steps."""

    @property
    def keeps_mean(self) -> bool:
        """Whether the rollout must keep them."""
        ...


def keeps_mean(objective: ObjectiveContract) -> bool:
    """Whether the rollout must keep the means of trained steps for this objective."""
    return isinstance(objective, ReadsMeans) and objective.keeps_mean
