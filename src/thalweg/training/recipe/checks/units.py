"""Losses that span several samples need all of them."""

from thalweg.credit import GroupCredit
from thalweg.objectives import Balance, Forward, Objective
from thalweg.objectives.rules import Centred, Preference
from thalweg.training.recipe.schema import Recipe


def whole_groups(recipe: Recipe) -> list[str]:
    """What would take samples out of a group whose loss spans all of them."""
    objective, credit, chosen, problems = recipe.objective, recipe.credit, recipe.selection, []
    spans = f"objective '{objective.kind}' compares the samples of a prompt"
    if isinstance(credit, GroupCredit) and credit.group_by != ("prompt",):
        problems.append(f"credit.group_by={list(credit.group_by)}: {spans}; use [prompt]")
    if chosen.trained_fraction < 1 and isinstance(objective, Forward):
        problems.append(
            f"selection.trained_fraction={chosen.trained_fraction}: {spans} at the same levels; give 1"
        )
    if _needs_every_sample(objective) and (chosen.drop_zero or chosen.best_of is not None):
        named = "drop_zero" if chosen.drop_zero else "best_of"
        problems.append(
            f"selection.{named}: {spans}, those of advantage 0 too; give "
            f"{'false' if chosen.drop_zero else 'none'}"
        )
    return problems


def _needs_every_sample(objective: Objective) -> bool:
    """Whether a sample of advantage 0 has a part in the loss of its group: in its shares, in its mean, or in
    the size that its sum is divided by.
    """
    if isinstance(objective, Balance):
        return True
    rule = objective.rule if isinstance(objective, Forward) else None
    return isinstance(rule, Centred) or (isinstance(rule, Preference) and rule.among == "group")
