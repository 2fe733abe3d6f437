"""Blame for a place: masks and corrected samples against hand values; 2 prompts, 3 samples each of 1x2x2."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit import BlameCredit, GroupCredit
from thalweg.objectives import Forward
from thalweg.objectives.rules import Implicit
from thalweg.rollout import Deterministic, Rollout, Root, grow
from thalweg.rollout.grow import LEAVES_PER_ROOT
from thalweg.worlds import find_world

NOWHERE, LEFT, TOP = (
    torch.tensor(m, dtype=torch.float32)[None] for m in ([[0, 0], [0, 0]], [[1, 0], [1, 0]], [[1, 1], [0, 0]])
)
# Of the first prompt the second sample is right; the second prompt has no failure.
MARKS = torch.stack([LEFT, NOWHERE, TOP, NOWHERE, NOWHERE, NOWHERE])
REWARD = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.0])


def forest_of(linear_policy):
    rollout = Rollout(plan=Deterministic(), group_size=3, steps=3)
    roots = [Root(slot, group, slot * 3 + group, slot) for slot in (0, 1) for group in range(3)]
    policy = linear_policy((1, 2, 2))
    return grow(policy, [Prompt("a"), Prompt("b")], roots, rollout, seed=0, iteration=0)


def assigned(forest, floor=0.0, marks=MARKS):
    scores = Scores({"r": REWARD}, marks=marks)
    return BlameCredit(floor=floor).assign(forest, scores, {"r": 1.0}, Processes())


def test_failures_answer_for_their_own_pixels_and_right_samples_for_all_of_their_groups(linear_policy):
    given = assigned(forest_of(linear_policy))
    both = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    everywhere = torch.ones(1, 2, 2)
    expected = torch.stack([LEFT, both, TOP, everywhere, everywhere, everywhere])
    assert_close(given.regions, expected[:, None])
    softened = assigned(forest_of(linear_policy), floor=0.05)
    assert_close(softened.regions, expected[:, None].clamp(min=0.05))
    assert_close(softened.corrected_regions, expected)


def test_a_failure_should_have_been_the_mean_of_the_right_ones_where_it_fails(linear_policy):
    forest = forest_of(linear_policy)
    x0, given = forest.latents, assigned(forest)
    assert given.corrected is not None
    assert_close(given.corrected[0], torch.where(LEFT > 0, x0[1], x0[0]))
    assert_close(given.corrected[2], torch.where(TOP > 0, x0[1], x0[2]))
    assert given.corrected[[1, 3, 4, 5]].isnan().all()  # right ones are as they should be
    lost = torch.stack([LEFT, TOP, TOP, NOWHERE, NOWHERE, NOWHERE])
    assert assigned(forest, marks=lost).corrected[:3].isnan().all()  # no right one to learn from


def test_the_advantages_are_those_of_the_group(linear_policy):
    forest = forest_of(linear_policy)
    expected = GroupCredit().assign(forest, Scores({"r": REWARD}), {"r": 1.0}, Processes())
    assert_close(assigned(forest).leaves, expected.leaves)


@pytest.mark.parametrize(("floor", "corrective_weight"), [(0.0, 0.7), (0.05, 0.7), (0.05, 0.0)])
def test_outside_the_mask_nothing_is_imitated_and_a_floor_alone_reaches_there(
    floor, corrective_weight, linear_policy
):
    # As if every latent element had a network of its own: the slope at each velocity.
    forest = forest_of(linear_policy)
    objective = Forward(rule=Implicit(), corrective_weight=corrective_weight)
    rows = objective.experience(forest, assigned(forest, floor=floor), seed=0, iteration=0)
    old = torch.randn(rows.x0.shape, generator=torch.Generator().manual_seed(0))
    velocity = (old + 0.1).requires_grad_()
    terms, _ = objective.loss(objective.measure(rows, rows.x0, velocity, {"old": old}), rows)
    (slope,) = torch.autograd.grad(terms.sum(), velocity)
    failed = (rows.sample // LEAVES_PER_ROOT)[:, None] == torch.tensor([0, 2])
    mask = torch.where(failed[:, :1, None, None], LEFT, TOP)
    copies = rows.corrected if rows.corrected is not None else torch.zeros(len(rows), dtype=torch.bool)
    assert int(copies.sum()) == (corrective_weight > 0) * 2 * 3  # two failures of a group with a right one
    outside = (slope * (1 - mask)).flatten(1).abs().amax(1)
    assert (outside[copies] == 0).all()
    own = failed.any(1) & ~copies
    assert ((outside[own] > 0) == (floor > 0)).all()
    inside = (slope * mask).flatten(1).abs().amax(1)
    assert (inside[copies | own] > 0).all()
    wanted = velocity - (rows.noise - rows.x0)
    expected = corrective_weight * 2 * wanted * mask / mask.flatten(1).sum(1).view(-1, 1, 1, 1)
    assert_close(slope[copies], expected[copies].detach())


def test_marks_shrink_to_latents_of_fewer_places_and_none_is_lost(linear_policy):
    fine = torch.zeros(6, 1, 4, 4)
    fine[0, 0, 3, 0] = 1  # bottom left
    given = assigned(forest_of(linear_policy), marks=fine)
    assert_close(given.regions[0, 0, 0], torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("number", [0, 130, 300, 600])
def test_the_scenes_blame_the_object_that_is_wrong_or_everything(number):
    import numpy as np

    world = find_world("scenes")
    assert world.blame is not None
    prompt = world.training_prompts()[number]

    def rng():
        return np.random.Generator(np.random.Philox(key=number))

    right, spoiled = (torch.from_numpy(make(prompt, rng())).float() for make in (world.draw, world.spoil))
    assert world.blame(right, prompt).max() == 0
    blamed = world.blame(spoiled, prompt)
    changed = (right - spoiled).abs().amax(0) > 0.01
    assert (blamed[changed] == 1).all()
    assert blamed.mean() < 0.9
    assert (world.blame(torch.zeros(3, 16, 16), prompt) == 1).all()


def test_scores_keep_their_marks_when_values_are_made_valid():
    from thalweg.rewards import without_infinite

    scores = Scores({"r": torch.tensor([torch.inf])}, marks=MARKS[:1])
    found = without_infinite(scores)
    assert found.leaves["r"].isnan().all() and found.marks is scores.marks
    assert replace(scores).marks is scores.marks
