import torch
from torch.testing import assert_close

from thalweg.core.values import Prompt
from thalweg.flow import FlowSDE
from thalweg.objectives.path_rows import transitions
from thalweg.rollout import AllSteps, Branch, Rollout, Root, Window, grow

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))


def forest_of(policy, plan, **settings):
    rollout = Rollout(plan=plan, kernel=FlowSDE(), steps=5, **settings)
    roots = [
        Root(slot, group, slot * rollout.num_roots + group, slot)
        for slot in (0, 1)
        for group in range(rollout.num_roots)
    ]
    return grow(policy, PROMPTS, roots, rollout, seed=0, iteration=0), rollout


def test_each_trained_step_is_a_row_with_its_states_and_numbers(linear_policy):
    forest, rollout = forest_of(linear_policy(), Window(size=2, start=1, move="fixed"), group_size=2)
    advantages = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 5.0], [4.0, 0.0]])
    rows, sigmas = transitions(forest, forest.advantages(advantages)), rollout.sigmas()
    assert rows.step.tolist() == [1] * 4 + [2] * 4
    assert_close(rows.sigma, sigmas[rows.step])
    assert_close(rows.sigma_next, sigmas[rows.step + 1])
    assert_close(rows.x_next[:4], rows.x[4:])
    assert_close(rows.x_next[4:], forest.levels[3].latents)
    assert_close(rows.advantages, advantages.repeat(2, 1))
    assert rows.prompt_slot.tolist() == rows.condition.tolist() == [0, 0, 1, 1] * 2
    assert rows.seed_group.tolist() == [0, 1] * 4
    assert rows.sample.tolist() == forest.leaves.sample.tolist() * 2
    assert rows.weight.tolist() == [1] * 8 and rows.depth.tolist() == [0] * 8
    # s² = a² σ/(1-σ) (σ - σ') and k = σ' - s²/(2σ).
    variance = 0.49 * rows.sigma / (1 - rows.sigma) * (rows.sigma - rows.sigma_next)
    assert_close(rows.std, variance.sqrt())
    assert_close(rows.k, rows.sigma_next - variance / (2 * rows.sigma))


def test_members_of_a_seed_group_start_their_first_step_from_one_state(linear_policy):
    forest, _ = forest_of(linear_policy(), AllSteps(), group_size=3, seed_groups=1)
    rows = transitions(forest, forest.advantages(torch.arange(6.0)[:, None]))
    first = rows.index(rows.step == 0)
    assert torch.equal(first.x[0], first.x[1]) and torch.equal(first.x[1], first.x[2])
    assert not torch.equal(first.x[2], first.x[3])
    assert first.advantages.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert first.depth.tolist() == [1] * 6 and first.condition.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_branch_has_one_row_with_the_advantage_of_its_leaf(linear_policy):
    forest, _ = forest_of(linear_policy(), Branch(num_branch_steps=2), group_size=4, seed_groups=1)
    rows = transitions(forest, forest.advantages(torch.arange(8.0)[:, None]))
    assert len(rows) == 8
    by_sample = dict(zip(forest.leaves.sample.tolist(), range(8), strict=True))
    assert rows.advantages.flatten().tolist() == [by_sample[s] for s in rows.sample.tolist()]
    fork = dict(zip(forest.leaves.sample.tolist(), forest.leaves.fork_step.tolist(), strict=True))
    assert rows.step.tolist() == [fork[s] for s in rows.sample.tolist()]
