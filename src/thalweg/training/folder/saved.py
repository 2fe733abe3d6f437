"""Runs that were stored: their recipe, metrics and models, and images from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thalweg.core.errors import UserError
from thalweg.core.values import Made, Prompt
from thalweg.evaluation.sampling import sample_images
from thalweg.models import POLICY, Policy
from thalweg.training.folder import checkpoint
from thalweg.training.folder.run import OURS, read_metrics
from thalweg.training.policy import load_policy
from thalweg.training.recipe.load import load_recipe
from thalweg.training.recipe.schema import Recipe


@dataclass(frozen=True)
class SavedRun:
    """A run's folder, read."""

    path: Path
    recipe: Recipe

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All metric lines so far, in order."""
        file = self.path / "metrics.jsonl"
        return read_metrics(file) if file.exists() else []

    @property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return checkpoint.complete(self.path / "checkpoints")

    def policy(self, weights: str = POLICY) -> Policy:
        """The model with the named weights of the last checkpoint as its policy; without one, the base."""
        policy = load_policy(self.recipe, is_saved=bool(self.checkpoints))
        if self.checkpoints:
            finish = self.recipe.evaluation.finish
            wanted = {POLICY: weights} | ({} if finish is None else {finish.weights: finish.weights})
            with torch.no_grad():
                for name, stored in wanted.items():
                    file = self.checkpoints[-1] / f"weights.{stored}.safetensors"
                    checkpoint.fill(policy.weights.tensors(name), file)
        return policy


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> SavedRun:
    """The run stored in a folder; `overrides` change its recipe, as in `resume RUN iterations=200`."""
    folder = Path(path)
    file = folder / OURS
    if not file.is_file():
        raise UserError(
            f"'{path}': no run there ({OURS} is missing); give the folder that `thalweg train` wrote"
        )
    return SavedRun(folder, load_recipe(file, overrides))


def open_model(source: str | Path, overrides: Sequence[str] = ()) -> tuple[Policy, Recipe]:
    """The trained model of a run, or the untrained one of a recipe."""
    if (Path(source) / OURS).is_file():
        run = load_run(source, overrides)
        return run.policy(run.recipe.evaluation.weights), run.recipe
    recipe = load_recipe(source, overrides)
    return load_policy(recipe), recipe


def sample(
    source: str | Path,
    prompts: Sequence[str | Prompt],
    per_prompt: int = 1,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Made:
    """Images in [0, 1], or media, `per_prompt` of each prompt: from a run, or a recipe's base model."""
    policy, recipe = open_model(source, overrides)
    asked = [p if isinstance(p, Prompt) else Prompt(p) for p in prompts]
    settings = recipe.evaluation.model_copy(update={"seed": seed, "weights": POLICY})
    return sample_images(policy, asked, per_prompt, settings, rewards=recipe.rewards)
