"""Promises that hold for each recipe the library ships, on a tiny random network."""

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Transitions
from thalweg.models.miniature.policy import LoRA
from thalweg.objectives import Forward, OnPolicyDistillation
from thalweg.objectives.contract import PathwiseContract
from thalweg.rollout import Root, grow
from thalweg.training.backward import backward
from thalweg.training.recipe import load_recipe, recipe_names
from thalweg.training.weight_rules import add_named

OBJECTIVES = {name: load_recipe(name).objective for name in recipe_names()}
# tests/properties/test_pathwise_recipes.py has the others.
ROWS = [
    name for name, of in OBJECTIVES.items() if not isinstance(of, PathwiseContract | OnPolicyDistillation)
]
SMALL = {name: {"rollout.group_size": 6 if name == "tempflow-grpo" else 3} for name in ROWS}
FORWARD = {name for name in SMALL if isinstance(OBJECTIVES[name], Forward)}
PASSES = {
    # G N;  1 + G (N-1);  a window at 0;  at 1;  G N.
    "flow-grpo": 12 * 8,
    "dance-grpo": 1 + 12 * 7,
    "mix-grpo": 1 + 12 * 7,
    "tmpo": 2 + 12 * 6,
    "gcpo": 12 * 8,
    **dict.fromkeys(FORWARD, 12 * 8),
}


def collected(recipe, policy, prompts):
    """Rows that the recipe trains on, for two prompts and random rewards."""
    add_named(policy.weights, recipe.weights)
    per_prompt = recipe.rollout.num_roots
    roots = [Root(s, g, s * per_prompt + g, s) for s in (0, 1) for g in range(per_prompt)]
    keep_mean = recipe.objective.keeps_mean
    forest = grow(policy, prompts[:2], roots, recipe.rollout, seed=0, iteration=0, keep_mean=keep_mean)
    rewards = torch.randn(len(forest.leaves), generator=torch.Generator().manual_seed(0))
    advantages = recipe.credit.assign(forest, Scores({"r": rewards}), {"r": 1.0}, Processes())
    rows = recipe.objective.experience(forest, advantages, seed=0, iteration=0)
    return recipe.selection.select(rows, seed=0, iteration=0), forest


def gradient(recipe, policy, rows, condition, micro_batch=8) -> list[torch.Tensor]:
    backward(recipe.objective, policy, rows, condition, micro_batch, 1 / len(rows))
    return [p.grad for p in policy.weights.parameters.values()]


def moved(policy) -> None:
    """The policy after an update, so that ratios, clips and anchors act."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in policy.weights.parameters.values():
            values += 0.002 * torch.randn(values.shape, generator=generator)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4.0)], ids=["full", "lora"])
@pytest.mark.parametrize("name", SMALL)
def test_no_gradient_is_lost_when_activations_are_recomputed(name, lora, tiny_policy, prompts):
    found = []
    for checkpointing in (False, True):
        recipe = load_recipe(name, SMALL[name])
        model = recipe.model.model_copy(update={"lora": lora, "gradient_checkpointing": checkpointing})
        policy = tiny_policy(model)
        rows, forest = collected(recipe, policy, prompts)
        moved(policy)
        found.append(gradient(recipe, policy, rows, forest.condition))
    assert all(g is not None for g in found[0] + found[1])
    assert all(g.abs().max() > 0 for g in found[0])
    assert_close(found[0], found[1])


@pytest.mark.parametrize("name", sorted(set(SMALL) - FORWARD))
def test_stored_steps_have_ratio_one_before_the_first_update(name, tiny_policy, prompts):
    recipe, policy = load_recipe(name, SMALL[name]), tiny_policy()
    rows, forest = collected(recipe, policy, prompts)
    assert isinstance(rows, Transitions) and len(rows) > 0
    report = backward(recipe.objective, policy, rows, forest.condition, 8, 1.0)
    # A hundredth of the clip range; other batch shapes than in the rollout round differently.
    assert report.ratio_deviation < recipe.objective.clip_range / 100
    assert report.totals["clip_fraction"] == 0


def test_at_the_batch_shape_of_the_rollout_the_ratio_is_exactly_one(tiny_policy, prompts):
    recipe, policy = load_recipe("flow-grpo", SMALL["flow-grpo"]), tiny_policy()
    rows, forest = collected(recipe, policy, prompts)
    report = backward(recipe.objective, policy, rows, forest.condition, 6, 1.0)
    assert report.ratio_deviation == 0


@pytest.mark.parametrize("name", SMALL)
def test_a_rollout_takes_the_passes_that_its_layout_says(name, linear_policy, prompts):
    recipe, policy = load_recipe(name), linear_policy()
    rows, forest = collected(recipe, policy, prompts)
    if name == "tempflow-grpo":
        # A trunk to the last branch step; from each branch step b, 4 branches of N - 1 - b steps.
        steps = sorted(set(forest.leaves.fork_step.tolist()))
        expected = 2 * (steps[-1] + 1 + sum(4 * (7 - b) for b in steps))
    else:
        expected = PASSES[name]
    assert policy.passes.evaluations == 2 * expected
    assert recipe.rollout.passes(0, 0, 1)[0] == expected
    if isinstance(rows, Transitions):
        few = {"dance-grpo": 12 * 4, "mix-grpo": 12 * 3, "tmpo": 12 * 3, "tempflow-grpo": 24}
        assert len(rows) == 2 * few.get(name, 12 * 7)
    else:
        assert len(rows) == 2 * 12 * recipe.objective.sigmas.num_sigmas


@pytest.mark.parametrize("name", SMALL)
def test_conditions_of_rows_are_those_of_their_prompts(name, linear_policy, prompts):
    rows, forest = collected(load_recipe(name), linear_policy(), prompts)
    assert rows.condition.tolist() == rows.prompt_slot.tolist()
    assert set(rows.prompt_slot.tolist()) == {0, 1}
    assert set(rows.sample.tolist()) <= set(forest.leaves.sample.tolist())
