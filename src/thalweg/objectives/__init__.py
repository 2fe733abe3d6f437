"""Which loss follows: one file a family."""

from typing import Annotated

from pydantic import Field, SerializeAsAny

from thalweg.core.part import OWN_PART
from thalweg.objectives.adjoint_matching import AdjointMatching
from thalweg.objectives.adjoint_matching_ode import AdjointMatchingODE
from thalweg.objectives.balance import Balance
from thalweg.objectives.chunk_ratio import ChunkRatio
from thalweg.objectives.clipped_ratio import ClippedRatio
from thalweg.objectives.distribution_matching import DistributionMatching
from thalweg.objectives.forward import Forward
from thalweg.objectives.on_policy_distillation import OnPolicyDistillation
from thalweg.objectives.reward_gradient import RewardGradient
from thalweg.objectives.score_matching import ScoreMatching
from thalweg.objectives.trajectory_shaping import TrajectoryShaping

Objective = Annotated[
    SerializeAsAny[
        Annotated[
            ClippedRatio
            | ChunkRatio
            | Forward
            | Balance
            | RewardGradient
            | AdjointMatching
            | AdjointMatchingODE
            | ScoreMatching
            | DistributionMatching
            | OnPolicyDistillation
            | TrajectoryShaping,
            Field(discriminator="kind"),
        ]
    ],
    OWN_PART,
]

__all__ = [
    "AdjointMatching",
    "AdjointMatchingODE",
    "Balance",
    "ChunkRatio",
    "ClippedRatio",
    "DistributionMatching",
    "Forward",
    "Objective",
    "OnPolicyDistillation",
    "RewardGradient",
    "ScoreMatching",
    "TrajectoryShaping",
]
