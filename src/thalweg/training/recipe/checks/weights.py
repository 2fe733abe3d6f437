"""Named weights: what each is used as and made from."""

import re

from thalweg.core.names import nearest
from thalweg.models import POLICY, DiffusersModel
from thalweg.objectives import DistributionMatching, OnPolicyDistillation
from thalweg.objectives.contract import PathwiseContract
from thalweg.training.recipe.schema import Recipe
from thalweg.training.weight_rules import Trained


def names_of_weights(recipe: Recipe) -> list[str]:
    """Names that are used and not there, cannot be written, or stand in the wrong order."""
    problems = []
    known = {POLICY, *recipe.weights}
    uses = {"rollout.weights": recipe.rollout.weights, "evaluation.weights": recipe.evaluation.weights}
    if recipe.rollout.explore is not None:
        uses["rollout.explore.weights"] = recipe.rollout.explore.weights
    for place, finish in (
        ("rollout.finish.weights", recipe.rollout.finish),
        ("evaluation.finish.weights", recipe.evaluation.finish),
    ):
        if finish is not None:
            uses[place] = finish.weights
    uses |= {f"objective, weights '{name}'": name for name in recipe.objective.anchors}
    uses |= {f"weights.{name}.from": rule.source for name, rule in recipe.weights.items()}
    for place, name in uses.items():
        if name not in known:
            problems.append(
                f"{place}: no weights are called '{name}'; add them under `weights`{nearest(name, known)}"
            )
    made = [POLICY]
    for name, rule in recipe.weights.items():
        if not re.fullmatch(r"[\w.-]+", name):
            problems.append(f"weights: '{name}' cannot name a file; use letters, digits, '.', '_' and '-'")
        if name == POLICY:
            problems.append(f"weights.{POLICY}: the name of the weights that are trained; choose another")
        if rule.source in known and rule.source not in made:
            problems.append(f"weights.{name}.from: '{rule.source}' comes later; write it above '{name}'")
        made.append(name)
    return problems


def roles_of_weights(recipe: Recipe) -> list[str]:
    """What named weights cannot be, and what an objective needs them to be."""
    problems, objective = [], recipe.objective
    learning = [name for name, rule in recipe.weights.items() if isinstance(rule.update, Trained)]
    if isinstance(recipe.model, DiffusersModel):
        problems += [
            f"weights.{name}.guidance_scale={rule.guidance_scale}: a diffusers model guides all its weights "
            "alike; leave it out"
            for name, rule in recipe.weights.items()
            if rule.guidance_scale is not None
        ]
    if isinstance(objective, DistributionMatching):
        if objective.fake in recipe.weights and objective.fake not in learning:
            problems.append(
                f"weights.{objective.fake}.update: objective '{objective.kind}' needs weights that learn the "
                "samples; use {kind: trained, optim: {learning_rate: ...}}"
            )
        if objective.teacher in learning:
            problems.append(f"weights.{objective.teacher}.update: a teacher does not learn; use frozen")
    if isinstance(objective, OnPolicyDistillation | PathwiseContract) and recipe.selection.drop_zero:
        problems.append(
            f"selection.drop_zero: objective '{objective.kind}' learns from samples of advantage 0 too; give "
            "false"
        )
    return problems
