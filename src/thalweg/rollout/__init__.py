"""Which randomness, at which steps: prompts in, a forest of trajectories out."""

from thalweg.rollout.grow import Root, grow
from thalweg.rollout.plans import AllSteps, Branch, Deterministic, Plan, Window
from thalweg.rollout.settings import Rollout

__all__ = ["AllSteps", "Branch", "Deterministic", "Plan", "Rollout", "Root", "Window", "grow"]
