"""The `evaluation` section of a recipe: held-out prompts, fixed seeds, a deterministic solver."""

from pydantic import NonNegativeInt, PositiveInt

from thalweg.core.part import Part
from thalweg.flow import DPMSolver, Schedule, Solver, Uniform
from thalweg.models import POLICY


class Evaluation(Part):
    """When and how a model is measured."""

    every: NonNegativeInt = 10
    """Iterations between evaluations; 0 evaluates at the start and the end only."""
    prompts: str = "held_out"
    """As `data.prompts`; or `data`, the training prompts themselves, where there are no others."""
    split: str = "test"
    """Part of a dataset; files have none."""
    num_prompts: PositiveInt | None = None
    """Take this many, spread evenly over the tasks; None takes all."""
    samples_per_prompt: PositiveInt = 1
    diversity_prompts: NonNegativeInt = 12
    """Prompts of which a whole group is drawn, to measure diversity."""
    diversity_group: PositiveInt = 8
    steps: PositiveInt = 8
    """Denoising steps."""
    schedule: Schedule = Uniform()
    solver: Solver = DPMSolver()
    weights: str = POLICY
    """The named weights that are measured."""
    seed: NonNegativeInt = 20250505
    """Of the initial noises; the same for every run, so that runs compare."""
    micro_batch: PositiveInt = 64
