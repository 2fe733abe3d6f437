"""What needs samples of one size."""

from thalweg.credit import RoutedCredit
from thalweg.flow import DynamicShift
from thalweg.models import DiffusersModel
from thalweg.objectives.contract import PathwiseContract
from thalweg.training.recipe.schema import Recipe


def listed_sizes(recipe: Recipe) -> list[str]:
    """Faults of `data.sizes`."""
    if not recipe.data.sizes:
        return []
    if not isinstance(recipe.model, DiffusersModel):
        return [
            f"data.sizes: samples of model.kind='{recipe.model.kind}' have one size; leave it out, or give a "
            "pipeline"
        ]
    return several_sizes(recipe) if len(recipe.data.sizes) > 1 else []


def several_sizes(recipe: Recipe) -> list[str]:
    """Settings that do not go with samples of several sizes, from `data.sizes` or the prompts."""
    problems, way_out = [], "give all prompts one size"
    if recipe.parallel.ulysses > 1:
        problems.append(
            f"parallel.ulysses={recipe.parallel.ulysses}: tokens are checked for one size of samples; "
            f"{way_out}, or leave it out"
        )
    if isinstance(recipe.credit, RoutedCredit):
        problems.append(f"credit.kind='routed': the parts of latents are as long in all samples; {way_out}")
    if isinstance(recipe.objective, PathwiseContract) and isinstance(recipe.rollout.schedule, DynamicShift):
        problems.append(
            f"rollout.schedule.kind='dynamic_shift': gives each size noise levels of its own, and "
            f"objective.kind='{recipe.objective.kind}' has one schedule; {way_out}, or another schedule"
        )
    return problems
