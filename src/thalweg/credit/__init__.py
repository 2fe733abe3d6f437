"""Which decision deserves the reward: rewards in, advantages out."""

from collections.abc import Mapping
from typing import Annotated, Protocol, runtime_checkable

from jaxtyping import Int64
from pydantic import Field, SerializeAsAny
from torch import Tensor

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.part import OWN_PART
from thalweg.core.processes import Processes
from thalweg.credit.blame import BlameCredit
from thalweg.credit.dense import DenseCredit
from thalweg.credit.group import GroupCredit
from thalweg.credit.objective_aware import ObjectiveAwareCredit
from thalweg.credit.process import ProcessCredit
from thalweg.credit.routed import RoutedCredit
from thalweg.credit.selection import DepthPrune, Selection
from thalweg.credit.tree import TreeCredit


@runtime_checkable
class CreditContract(Protocol):
    """What training asks of a credit."""

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's edges and samples, with statistics over all processes."""
        ...

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group."""
        ...


Credit = Annotated[
    SerializeAsAny[
        Annotated[
            GroupCredit
            | TreeCredit
            | DenseCredit
            | ProcessCredit
            | ObjectiveAwareCredit
            | BlameCredit
            | RoutedCredit,
            Field(discriminator="kind"),
        ]
    ],
    OWN_PART,
]

__all__ = [
    "BlameCredit",
    "Credit",
    "CreditContract",
    "DenseCredit",
    "DepthPrune",
    "GroupCredit",
    "ObjectiveAwareCredit",
    "ProcessCredit",
    "RoutedCredit",
    "Selection",
    "TreeCredit",
]
