"""The `evaluation` section of a recipe: held-out prompts, fixed seeds, a deterministic solver."""

from pydantic import NonNegativeInt, PositiveInt, model_validator

from thalweg.core.part import Part
from thalweg.evaluation.stepwise import Stepwise
from thalweg.flow import DPMSolver, Schedule, Solver, Uniform
from thalweg.models import POLICY
from thalweg.rollout.finish import Finish


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
    finish: Finish | None = None
    """Let other weights take the last steps."""
    stepwise: Stepwise | None = None
    """Draw several candidates for every step and go on with the best (DRM); `solver` is not used."""
    seed: NonNegativeInt = 20250505
    """Of the initial noises; the same for every run, so that runs compare."""
    micro_batch: PositiveInt = 64

    @model_validator(mode="after")
    def _consistent(self) -> "Evaluation":
        if self.finish is not None and self.finish.steps >= self.steps:
            raise ValueError(
                f"finish.steps={self.finish.steps} of steps={self.steps}: the first are measured; give fewer"
            )
        if self.finish is not None and self.stepwise is not None:
            raise ValueError("finish and stepwise: both say how samples are made; leave one out")
        return self
