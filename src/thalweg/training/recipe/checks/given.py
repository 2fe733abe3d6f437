"""Samples that are given: who draws them, and who learns from them."""

from thalweg.models import MiniatureModel
from thalweg.objectives import Forward
from thalweg.training.recipe.schema import Recipe


def given(recipe: Recipe) -> list[str]:
    """What keeps samples from being given, or the objective from learning from them."""
    rollout, problems = recipe.rollout, []
    if not rollout.given:
        return []
    if not isinstance(recipe.model, MiniatureModel):
        problems.append(
            "rollout.given: an embedded world draws pictures to be given, and the model "
            f"'{recipe.model.kind}' does not take them; use the model miniature, or leave it out"
        )
    if not isinstance(recipe.objective, Forward):
        problems.append(
            f"rollout.given: objective '{recipe.objective.kind}' learns from the model's own steps; use one "
            "over finished samples (objective.kind=forward)"
        )
    return problems
