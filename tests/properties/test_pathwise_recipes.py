"""Promises that hold for each pathwise or distilling recipe the library ships, on a tiny random network."""

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.objectives import OnPolicyDistillation
from thalweg.objectives.contract import PathwiseContract
from thalweg.rewards.pixels import Brightness
from thalweg.rollout import Root, grow
from thalweg.training.backward import backward
from thalweg.training.pathwise import judge_of
from thalweg.training.recipe.load import load_recipe, recipe_names
from thalweg.training.weight_rules import add_named

OBJECTIVES = {name: load_recipe(name).objective for name in recipe_names()}
PATHWISE = [name for name, of in OBJECTIVES.items() if isinstance(of, PathwiseContract)]
DISTILLING = [name for name, of in OBJECTIVES.items() if isinstance(of, OnPolicyDistillation)]


def gradient(name, policy, prompts, micro_batch=8):
    """Of the recipe's loss at samples of the policy, after it has moved away from its anchors."""
    recipe = load_recipe(name)
    add_named(policy.weights, recipe.weights)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for of in policy.weights.names:
            for values in policy.weights.tensors(of).values():
                values += 0.01 * torch.randn(values.shape, generator=generator)
    roots = [Root(s, g, s * 2 + g, s) for s in (0, 1) for g in (0, 1)]
    forest = grow(policy, prompts[:2], roots, recipe.rollout, seed=0, iteration=0, keep_states=True)
    rows = recipe.objective.experience(forest, forest.advantages(torch.zeros(4, 1)), seed=0, iteration=0)
    judge = judge_of([Brightness()], forest.prompts)
    backward(recipe.objective, policy, rows, forest.condition, micro_batch, 1 / len(rows), Processes(), judge)
    return [p.grad for p in policy.weights.parameters.values()]


@pytest.mark.parametrize("name", PATHWISE + DISTILLING)
def test_the_micro_batch_and_recomputed_activations_change_a_gradient_by_rounding_only(
    name, tiny_policy, prompts
):
    recipe = load_recipe(name)
    whole = gradient(name, tiny_policy(recipe.model), prompts)
    assert all(g is not None for g in whole)
    largest = max(float(g.abs().max()) for g in whole)
    assert largest > 1e-6
    again = recipe.model.model_copy(update={"gradient_checkpointing": True})
    for got in (
        gradient(name, tiny_policy(recipe.model), prompts, micro_batch=1),
        gradient(name, tiny_policy(again), prompts),
    ):
        assert_close(got, whole, rtol=1e-3, atol=1e-7 + 1e-4 * largest)
