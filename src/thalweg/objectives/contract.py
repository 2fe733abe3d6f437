"""What training asks of an objective.

An objective sees the network through scalars of single passes only: a log-probability, a regression error. It
names the unit its loss spans, and a function from scalars to loss terms, one a unit; training evaluates the
scalars, in one sweep where a unit fits a micro-batch and else in two (`training.backward`).

A pathwise objective is the exception: its loss runs through several passes and a differentiable reward, so it
is handed the velocity field itself, micro-batch by micro-batch (`training.pathwise`).

Shapes: B rows (network passes, or trajectories), U units, ... latent axes.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.values import Paths, Samples, Transitions

Unit = Literal["row", "sample", "pair", "group"]
"""What one loss term spans: a single network pass, all passes of a sample, those of the best and the worst
sample of a prompt, or those of all its samples. Groups are whole in every update and on any number of
processes.
"""

CURRENT = "policy"
"""The name of the weights that are trained."""

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


@runtime_checkable
class ReadsStates(Protocol):
    """An objective over finished samples that may ask for the states they went through."""

    @property
    def keeps_states(self) -> bool:
        """Whether the rollout must keep them."""
        ...


@runtime_checkable
class VelocityField(Protocol):
    """The policy at the conditions of some rows, and what their samples are worth.

    Named weights act without gradient only, and not while a graph of the policy is open: ask for them first.
    """

    def velocity(
        self, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], *, recompute: bool = False
    ) -> Float[Tensor, "B ..."]:
        """Of the trained weights, with gradient; `recompute` keeps no activations for it."""
        ...

    def velocity_of(
        self, name: str, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        """Of named weights, without gradient."""
        ...

    def pull_back(
        self, name: str, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], slope: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """The velocity of named weights and (dv/dx)^T slope; leaves no graph behind."""
        ...

    def reward(self, latents: Float[Tensor, "B ..."], wording: str = "{}") -> Float[Tensor, " B"]:
        """The weighted sum of the recipe's rewards of finished latents, with gradient, where {} of the
        wording stands for the prompt.
        """
        ...

    def as_stored(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Rounded to what the rollout stores and the network sees; the gradient passes through."""
        ...


@runtime_checkable
class PathwiseContract(Protocol):
    @property
    def unit(self) -> Unit:
        """`row`: a trajectory."""
        ...

    @property
    def anchors(self) -> tuple[str, ...]:
        """Named weights that it asks the velocity field for."""
        ...

    @property
    def reads_reward(self) -> bool:
        """Whether it learns from the gradient of the reward."""
        ...

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        """The trajectories to take up; all that is drawn is drawn here."""
        ...

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        """Network passes of a sample of so many steps: with gradient, and others by the weights that make
        them.
        """
        ...

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        """Weighted loss terms, one a row, and what to report of each."""
        ...


def keeps_mean(objective: ObjectiveContract | PathwiseContract) -> bool:
    """Whether the rollout must keep the means of trained steps for this objective."""
    return isinstance(objective, ReadsMeans) and objective.keeps_mean


def keeps_states(objective: ObjectiveContract | PathwiseContract) -> bool:
    """Whether the rollout must keep all states for this objective; pathwise ones start from them."""
    if isinstance(objective, PathwiseContract):
        return True
    return isinstance(objective, ReadsStates) and objective.keeps_states
