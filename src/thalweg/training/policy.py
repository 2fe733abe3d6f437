"""A recipe's model with its named weights."""

from pathlib import Path

import torch

from thalweg.core.errors import UserError
from thalweg.models import Policy
from thalweg.models.contract import HasAttention
from thalweg.objectives import OnPolicyDistillation
from thalweg.training.folder import checkpoint
from thalweg.training.folder.run import OURS
from thalweg.training.recipe.load import load_recipe
from thalweg.training.recipe.schema import Recipe
from thalweg.training.weight_rules import add_named


def load_policy(recipe: Recipe, *, is_saved: bool = False) -> Policy:
    """The model with its named weights, started from `init` if the recipe names it.

    Where a checkpoint holds the weights (`is_saved`), `init` is not needed any more and may be gone.
    """
    policy = recipe.model.load()
    attention = recipe.rollout.attention
    if attention is not None:
        if not isinstance(policy, HasAttention):
            raise UserError(
                f"rollout.attention: the model '{recipe.model.kind}' cannot say where it looks; leave it out"
            )
        policy.require_attention(attention.modules, attention.blocks)
    if recipe.init is not None and not is_saved:
        with torch.no_grad():
            checkpoint.fill(policy.weights.tensors("policy"), checkpoint.weights_file(recipe.init))
    add_named(policy.weights, recipe.weights)
    for name, rule in recipe.weights.items():
        if rule.init is not None and not is_saved:
            require_same_levels(recipe, name, rule.init)
            try:
                with torch.no_grad():
                    checkpoint.fill(policy.weights.tensors(name), checkpoint.weights_file(rule.init))
            except UserError as error:
                raise UserError(f"weights.{name}.init: {error}") from None
    return policy


def require_same_levels(recipe: Recipe, name: str, source: str) -> None:
    """Raises where the objective compares steps with those of a teacher that was trained on others."""
    file = Path(source) / OURS
    if not isinstance(recipe.objective, OnPolicyDistillation) or not file.is_file():
        return
    here, there = (r.rollout.sigmas(r.seed, 0) for r in (recipe, load_recipe(file)))
    if not torch.equal(here, there):
        shown = ["[" + ", ".join(f"{s:.3g}" for s in sigmas.tolist()) + "]" for sigmas in (there, here)]
        raise UserError(
            f"weights.{name}.init='{source}': that run took its steps at the noise levels {shown[0]}, and "
            f"this recipe takes them at {shown[1]}; make rollout.steps, schedule and solver the same"
        )
