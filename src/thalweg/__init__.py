"""Thalweg: align generative flow and diffusion models by online reinforcement learning.

recipe = thalweg.load_recipe("mix-grpo", {"iterations": 40})
run = thalweg.train(recipe, out="runs/mine")
images = thalweg.sample("runs/mine", ["a red square left of a blue circle"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.core.errors import UserError
    from thalweg.core.values import Prompt
    from thalweg.training.folder.saved import SavedRun, load_run, sample
    from thalweg.training.loop import Run, resume, train
    from thalweg.training.recipe.load import load_recipe
    from thalweg.training.recipe.schema import Recipe

__version__ = "0.1.0"

_PLACES = {
    "Prompt": "thalweg.core.values",
    "Recipe": "thalweg.training.recipe.schema",
    "Run": "thalweg.training.loop",
    "SavedRun": "thalweg.training.folder.saved",
    "UserError": "thalweg.core.errors",
    "load_recipe": "thalweg.training.recipe.load",
    "load_run": "thalweg.training.folder.saved",
    "resume": "thalweg.training.loop",
    "sample": "thalweg.training.folder.saved",
    "train": "thalweg.training.loop",
}

__all__ = [
    "Prompt",
    "Recipe",
    "Run",
    "SavedRun",
    "UserError",
    "load_recipe",
    "load_run",
    "resume",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, `thalweg --help` should not."""
    if name not in _PLACES:
        raise AttributeError(f"module 'thalweg' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
