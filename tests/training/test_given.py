"""Samples that are given: what stands in the forest, what is learnt from it, and the noise they came from."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from thalweg.core.noise import Address, normals
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.training.collect import collect
from thalweg.training.given import inverted
from thalweg.training.loop import train
from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from thalweg.training.recipe.load import load_recipe
from thalweg.training.weight_rules import add_named
from thalweg.worlds import WORLDS
from training.small_runs import small, trains


def collected(name, tiny_policy, prompts, overrides=None):
    recipe, policy = small(name, overrides), tiny_policy()
    add_named(policy.weights, recipe.weights)
    return recipe, policy, collect(recipe, policy, prompts[:2], Processes(), iteration=0).forest


@pytest.mark.parametrize("world", WORLDS)
def test_a_right_picture_is_judged_right_and_a_spoiled_one_is_the_same_but_for_one_thing(world):
    world = WORLDS[world]
    for n, prompt in enumerate(world.training_prompts()[::67]):
        right, spoiled = (
            torch.from_numpy(make(prompt, np.random.Generator(np.random.Philox(key=n)))).float()
            for make in (world.draw, world.spoil)
        )
        assert world.judge(right, prompt).strict
        assert not world.judge(spoiled, prompt).strict
        changed = (right - spoiled).abs().amax(0) > 0.01
        assert 0 < changed.float().mean() < 0.5


def test_given_samples_come_first_in_their_group_and_the_others_are_drawn(tiny_policy, prompts):
    world = WORLDS["scenes"]
    _, policy, forest = collected("diffusion-apo-half-online", tiny_policy, prompts)
    leaves = forest.leaves
    assert sorted(zip(leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), strict=True)) == [
        (slot, group) for slot in (0, 1) for group in range(4)
    ]
    assert len(leaves.sample.unique()) == 8
    images = policy.decode(forest.latents)
    for n, prompt in enumerate(forest.leaf_prompts):
        assert prompt is prompts[int(leaves.prompt_slot[n])]
        if leaves.seed_group[n] == 0:
            assert world.judge(images[n], prompt).strict
            own = leaves.sample[leaves.prompt_slot == leaves.prompt_slot[n]]
            assert leaves.sample[n] == own.min()
        else:
            assert not world.judge(images[n], prompt).strict  # of a random network
    for column in forest.advantages(torch.arange(8.0)[:, None]).levels:
        assert column.isfinite().all()


def test_drawn_samples_are_those_of_their_own_noise(tiny_policy, prompts):
    _, _, mixed = collected("diffusion-apo-half-online", tiny_policy, prompts)
    _, _, alone = collected("diffusion-apo", tiny_policy, prompts)
    for slot in (0, 1):
        for group in (1, 2, 3):
            one, other = (
                f.latents[(f.leaves.prompt_slot == slot) & (f.leaves.seed_group == group)]
                for f in (mixed, alone)
            )
            assert_close(one, other)


def test_a_pair_of_pictures_differs_in_what_was_spoiled(tiny_policy, prompts):
    recipe, policy, forest = collected("realalign", tiny_policy, prompts, {"rollout.group_size": 2})
    assert policy.passes.evaluations == 0
    for slot in (0, 1):
        right, spoiled = forest.latents[forest.leaves.prompt_slot == slot]
        assert 0 < float(((right - spoiled).abs().amax(0) > 0.02).float().mean()) < 0.5
    again = collected("realalign", tiny_policy, prompts, {"rollout.group_size": 2})[2]
    assert torch.equal(again.latents, forest.latents)
    later = collect(recipe, policy, prompts[:2], Processes(), iteration=1).forest
    assert not torch.equal(later.latents, forest.latents)


def test_the_noise_of_a_given_sample_leads_back_to_it(linear_policy):
    # Data N(shift, 1/4): the flow sends z to shift + z/2, so a sample x0 comes from 2 (x0 - shift).
    recipe = load_recipe("diffusion-apo-half-online", {"rollout.steps": 2000})
    policy = linear_policy((3,))
    condition = policy.encode([Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0})])
    x0 = torch.tensor([[0.3, -0.2, 0.0], [3.5, 2.0, 3.0]])
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    found = inverted(recipe, policy, x0, noise, condition)
    assert_close(found[:, 0], torch.tensor([[0.6, -0.4, 0.0], [1.0, -2.0, 0.0]]), rtol=0, atol=5e-3)
    assert torch.equal(found[:, -1], x0)
    assert_close(found[:, -2], (1 - 1 / 2000) * x0 + 1 / 2000 * noise)


@pytest.mark.parametrize("noise", ["rollout", "path"])
def test_rows_of_given_samples_have_the_noise_or_the_path_that_was_worked_out(noise, tiny_policy, prompts):
    overrides = {"objective.noise": noise}
    recipe, policy, forest = collected("diffusion-apo-half-online", tiny_policy, prompts, overrides)
    advantages = forest.advantages(torch.randn(8, 1, generator=torch.Generator().manual_seed(0)))
    rows = recipe.objective.experience(forest, advantages, seed=recipe.seed, iteration=0)
    plain_recipe, _, plain = collected("diffusion-apo", tiny_policy, prompts, overrides)
    expected = plain_recipe.objective.experience(
        plain, plain.advantages(torch.zeros(8, 1)), seed=0, iteration=0
    )
    given = rows.seed_group == 0
    x0 = forest.latents[forest.leaves.seed_group == 0]
    slots = forest.leaves.prompt_slot[forest.leaves.seed_group == 0]
    drawn = normals([Address(recipe.seed, "initial", 0, slot, 0) for slot in slots.tolist()], x0.shape[1:])
    path = inverted(recipe, policy, x0, drawn, forest.condition.index(slots)).repeat_interleave(3, 0)
    if noise == "rollout":
        assert_close(rows.noise[given], path[:, 0])
    else:
        level = (8 * (1 - rows.sigma[given])).round().long()  # 8 even steps
        assert len(level.unique()) > 1
        seen, _ = recipe.objective.inputs(rows)
        assert_close(seen[given], path[torch.arange(len(path)), level])
    for slot in (0, 1):
        for group in (1, 2, 3):
            one, other = (
                r.noise[(r.prompt_slot == slot) & (r.seed_group == group)] for r in (rows, expected)
            )
            # On a path it is (x_σ - (1 - σ) x0) / σ, and the network rounds otherwise in other batches.
            assert_close(one, other, atol=1e-4 if noise == "path" else 0, rtol=0)


@pytest.mark.parametrize(
    ("name", "group_size", "evaluations", "backwards"),
    [
        # 2 prompts; 3 of 4 drawn in 8 steps, the noise of the first in 7; 3 levels, 3 weights.
        ("diffusion-apo-half-online", 4, 2 * (3 * 8 + 7) + 2 * 2 * 3 * 3, 2 * 2 * 3),
        ("realalign", 2, 2 * 2 * 3 * 2, 2 * 2 * 3),
        ("diffusion-dpo", 4, 2 * 4 * 8 + 2 * 2 * 3 * 2, 2 * 2 * 3),
    ],
)
def test_given_samples_cost_no_pass_but_for_their_noise(
    name, group_size, evaluations, backwards, tiny_world, tmp_path
):
    changes = {"iterations": 1, "rollout.group_size": group_size}
    recipe = small(name, changes)
    (line,) = trains(train(recipe, tmp_path / "run"))
    assert (line["evaluations"], line["backwards"]) == (evaluations, backwards)
    plan = batch_plan(recipe, load_policy(recipe))
    assert (plan.evaluations, plan.gradient_passes) == (evaluations, backwards)


def test_the_reported_reward_is_that_of_the_models_own_samples(tiny_world, tmp_path):
    exact = {"rewards": [{"kind": "world", "world": "scenes", "strict": True}], "iterations": 1}
    (line,) = trains(train(small("diffusion-apo-half-online", exact), tmp_path / "run"))
    assert line["reward"] == 0  # a random network gets nothing right, the given samples are all right
