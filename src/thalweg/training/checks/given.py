"""Samples that are given: who draws them, and who learns from them."""

from thalweg.objectives import Forward
from thalweg.training.schema import Recipe


def given(recipe: Recipe) -> list[str]:
    """What keeps samples from being given, or the objective from learning from them."""
    rollout, problems = recipe.rollout, []
    if not rollout.given:
        return []
    if recipe.model.world is None:
        problems.append(
            "rollout.given: embedded worlds alone draw samples to be given, and this model has none; leave "
            "it out"
        )
    if not isinstance(recipe.objective, Forward):
        problems.append(
            f"rollout.given: objective '{recipe.objective.kind}' learns from the model's own steps; use one "
            "over finished samples (objective.kind=forward)"
        )
    return problems
