"""What a recipe may say: a section a part, every key typed, unknown keys refused."""

from typing import Literal

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from thalweg.core.part import Part
from thalweg.credit import Credit, GroupCredit, Selection
from thalweg.evaluation.benchmark import Evaluation
from thalweg.models import Model
from thalweg.objectives import Objective
from thalweg.rewards import Reward
from thalweg.rollout import Rollout
from thalweg.training.data.prompts import Data
from thalweg.training.distribution.parallel import Parallel
from thalweg.training.optimise import Optim
from thalweg.training.replay import Replay
from thalweg.training.weight_rules import WeightRule


class Run(Part):
    """The `run` section: what is kept, when to stop."""

    save_every: PositiveInt = 20
    """Iterations between checkpoints."""
    keep_last: PositiveInt = 2
    """How many checkpoints stay."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation."""
    max_seconds: PositiveFloat | None = None
    """Save and stop after this time, counted over all resumptions."""
    max_cpu_seconds: PositiveFloat | None = None
    """Save and stop after this processor time of the first process, evaluations, saving and its workers left
    out: a budget that other programs on the machine do not change."""
    invalid_rewards: Literal["raise", "drop"] = "raise"
    """A reward that is NaN stops the run, or leaves its sample out (counted as `invalid_rewards`)."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the run's folder."""


class Recipe(Part):
    """Everything that decides what a run does."""

    name: str
    title: str
    """The method, in a line."""
    paper: str
    """Where it was published."""
    claim: str = ""
    """What the publication measured against another method, in its own setting."""
    iterations: NonNegativeInt
    """Rounds of collecting and learning."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    init: str | None = None
    """Start from these weights: a run's folder, a checkpoint, or a safetensors file."""
    model: Model
    weights: dict[str, WeightRule] = Field(default_factory=dict)
    """Named sets of weights besides the policy."""
    data: Data = Data()
    rollout: Rollout
    rewards: tuple[Reward, ...]
    credit: Credit = GroupCredit()
    selection: Selection = Selection()
    """Which of the collected rows are trained on."""
    replay: Replay | None = None
    """Train on samples of earlier iterations too."""
    objective: Objective
    optim: Optim
    evaluation: Evaluation = Evaluation()
    parallel: Parallel = Parallel()
    run: Run = Run()

    def to_yaml(self) -> str:
        """Fully resolved: every value, defaults included; reads back as the same recipe."""
        return yaml.safe_dump(
            self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True, width=100
        )
