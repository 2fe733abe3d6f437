"""Which randomness, at which steps: prompts in, a forest of trajectories out."""

from thalweg.rollout.attention import Attention
from thalweg.rollout.explore import Explore, rank_agreement
from thalweg.rollout.grow import grow
from thalweg.rollout.guidance import Guidance, Value
from thalweg.rollout.perturbation import Perturbation
from thalweg.rollout.plans import (
    AllSteps,
    Branch,
    BranchBudget,
    Candidates,
    Deterministic,
    Plan,
    Tree,
    Window,
)
from thalweg.rollout.root import Root
from thalweg.rollout.settings import Rollout

__all__ = [
    "AllSteps",
    "Attention",
    "Branch",
    "BranchBudget",
    "Candidates",
    "Deterministic",
    "Explore",
    "Guidance",
    "Perturbation",
    "Plan",
    "Rollout",
    "Root",
    "Tree",
    "Value",
    "Window",
    "grow",
    "rank_agreement",
]
