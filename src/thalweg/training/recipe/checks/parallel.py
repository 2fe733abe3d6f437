"""What sharded weights, shared samples and rollout workers cannot do.

With shards, that is a pass outside the order that all processes keep.
"""

from collections.abc import Mapping
from typing import Any

from thalweg.models import DiffusersModel, MiniatureModel, SoundingModel
from thalweg.training.recipe.schema import Recipe


def sharded(recipe: Recipe) -> list[str]:
    """Settings that use a network outside its own passes, or make one a second time."""
    here, problems = f"with parallel.weights='{recipe.parallel.weights}'", []
    if recipe.rollout.perturbation is not None:
        problems.append(
            f"rollout.perturbation: reads the network's embeddings outside its passes, which {here} are in "
            "shards; use replicated"
        )
    if isinstance(recipe.model, MiniatureModel) and recipe.model.gradient_checkpointing:
        problems.append(
            f"model.gradient_checkpointing: the miniature model computes whole passes again, which {here} "
            "all processes would have to; leave it out"
        )
    for place in _switched_on(recipe.objective.model_dump(), "recompute", "objective"):
        problems.append(
            f"{place}: computes whole passes again, which {here} all processes would have to; give false, "
            "and model.gradient_checkpointing=true for a model that recomputes block by block"
        )
    return problems


def shared(recipe: Recipe) -> list[str]:
    """Settings that do not go with samples that several processes share."""
    here, problems = f"parallel.ulysses={recipe.parallel.ulysses}", []
    if not isinstance(recipe.model, DiffusersModel):
        problems.append(
            f"{here}: model.kind='{recipe.model.kind}' has no network of diffusers with a plan by which "
            "samples are split; leave it out"
        )
    if recipe.parallel.weights != "replicated":
        problems.append(
            f"{here}: with parallel.weights='{recipe.parallel.weights}' each process would gather weights in "
            "another's part of a pass; use replicated, or leave ulysses out"
        )
    return problems


def worked(recipe: Recipe) -> list[str]:
    """Settings that do not go with workers, each of which has a whole model."""
    workers, problems = recipe.parallel.workers, []
    assert workers is not None
    if recipe.parallel.weights != "replicated":
        problems.append(
            f"parallel.workers: each has the whole network, which parallel.weights="
            f"'{recipe.parallel.weights}' says does not fit; use replicated, or leave the workers out"
        )
    if recipe.parallel.ulysses > 1:
        problems.append(
            f"parallel.workers: each makes whole samples, which parallel.ulysses={recipe.parallel.ulysses} "
            "says do not fit; leave one of them out"
        )
    if not isinstance(recipe.model, MiniatureModel | SoundingModel | DiffusersModel):
        return problems
    device = recipe.model.device
    if device != "cpu" and not workers.gpus_per_worker:
        problems.append(
            f"parallel.workers.gpus_per_worker=0: model.device='{device}' is no worker's, as Ray hides "
            "accelerators that it does not keep for it; give 1, or a share"
        )
    elif ":" in device:
        problems.append(
            f"model.device='{device}': a worker sees only the accelerators that Ray keeps for it, counted "
            f"from 0; give '{device.partition(':')[0]}'"
        )
    return problems


def _switched_on(settings: Mapping[str, Any], key: str, place: str) -> list[str]:
    """Places of a switch that is on, at any depth."""
    found = []
    for name, value in settings.items():
        if name == key and value is True:
            found.append(f"{place}.{name}")
        if isinstance(value, Mapping):
            found += _switched_on(value, key, f"{place}.{name}")
    return found
