import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from thalweg.core.forest import Leaves
from thalweg.credit import GroupCredit

RAW = GroupCredit(std="none", limit=None)


def leaves_of(slots, seeds=None, forks=None) -> Leaves:
    def column(values):
        return torch.tensor(slots if values is None else values)

    zeros = [0] * len(slots)
    return Leaves(
        column(slots), column(seeds or zeros), column(forks or zeros), torch.arange(len(slots)) * 1000
    )


def advantages(credit: GroupCredit, rewards, slots, **leaves) -> torch.Tensor:
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    return credit.advantages({"r": rewards}, {"r": 1.0}, leaves_of(slots, **leaves)).flatten()


groups_of_four = st.lists(st.floats(-10, 10), min_size=12, max_size=12)
SLOTS = [0, 1, 2] * 4


@given(rewards=groups_of_four, shift=st.floats(-100, 100))
@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_a_shift_of_rewards_changes_nothing_and_advantages_of_a_group_sum_to_zero(std, rewards, shift):
    rewards = torch.tensor(rewards, dtype=torch.float64).round(decimals=2)
    credit = GroupCredit(std=std, limit=None, epsilon=0.01)
    got = advantages(credit, rewards, SLOTS)
    assert_close(advantages(credit, rewards + round(shift, 2), SLOTS), got, atol=1e-5, rtol=1e-5)
    for slot in range(3):
        assert abs(got[slot::3].sum()) < 1e-4


@given(rewards=groups_of_four, scale=st.floats(0.1, 50))
def test_a_scale_of_rewards_changes_nothing_where_the_groups_std_divides(rewards, scale):
    rewards = torch.tensor(rewards, dtype=torch.float64).round(decimals=2)
    credit = GroupCredit(epsilon=0)
    assert_close(advantages(credit, rewards * scale, SLOTS), advantages(credit, rewards, SLOTS))


@pytest.mark.parametrize("std", ["group", "global", "none"])
@pytest.mark.parametrize("combine", ["sum_rewards", "sum_advantages", "separate"])
def test_a_reward_that_counts_negative_turns_advantages_round(combine, std):
    credit = GroupCredit(std=std, limit=None, epsilon=0, combine=combine)
    # Deviations are -1 and 1, and so is their std.
    got = credit.advantages({"r": torch.tensor([2.0, 4.0])}, {"r": -1.0}, leaves_of([0, 0]))
    assert_close(got, torch.tensor([[1.0], [-1.0]]))


@given(rewards=groups_of_four, order=st.permutations(range(12)))
def test_permuting_samples_permutes_their_advantages(rewards, order):
    rewards, order = torch.tensor(rewards), list(order)
    got = advantages(GroupCredit(), rewards, SLOTS)
    assert_close(advantages(GroupCredit(), rewards[order], [SLOTS[i] for i in order]), got[order])


@given(reward=st.floats(-10, 10), size=st.integers(2, 9))
@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_equal_rewards_give_exactly_no_advantage(std, reward, size):
    # Not a rounding of zero: divided by the epsilon of DanceGRPO that would be a whole advantage.
    credit = GroupCredit(std=std, epsilon=1e-8)
    got = advantages(credit, [reward] * size + [0.0, 1.0], [0] * size + [1, 1])
    assert (got[:size] == 0).all() and got[size] < 0 < got[size + 1]


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("epsilon", [0, 1e-4, 0.5])
def test_advantages_are_what_numpy_says(ddof, epsilon):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=12) * np.repeat([1.0, 3.0, 0.2], 4) + np.repeat([0.0, 5.0, -2.0], 4)
    slots = [7] * 4 + [2] * 4 + [5] * 4
    table = rewards.reshape(3, 4)
    centred = table - table.mean(1, keepdims=True)
    expected = {
        "group": centred / (table.std(1, ddof=ddof, keepdims=True) + epsilon),
        # Of the rewards, not of their distances from the means of the groups.
        "global": centred / (rewards.std(ddof=ddof) + epsilon),
        "none": centred,
    }
    for std, values in expected.items():
        credit = GroupCredit(std=std, ddof=ddof, epsilon=epsilon)
        got = advantages(credit, rewards, slots)
        assert_close(got, torch.tensor(values.flatten()).float(), atol=1e-6, rtol=1e-5)


def test_the_defaults_are_a_population_std_a_small_epsilon_and_a_limit_of_five():
    # Rewards 0, 0, 0, 4: mean 1, std √3.
    assert_close(
        advantages(GroupCredit(), [0, 0, 0, 4], [0] * 4),
        torch.tensor([-1.0, -1.0, -1.0, 3.0]) / (3**0.5 + 1e-4),
    )
    one_in_hundred = advantages(GroupCredit(), [1.0] + [0.0] * 99, [0] * 100)
    assert one_in_hundred[0] == 5 and one_in_hundred[1] > -0.11  # (1 - .01) / √.0099 = 9.9


def test_the_limit_holds_on_both_sides_and_none_leaves_the_advantage():
    rewards, slots = [1.0, 0.0, 0.0, -1.0], [0] * 4
    assert advantages(GroupCredit(std="none", limit=0.25), rewards, slots).tolist() == [0.25, 0, 0, -0.25]
    assert advantages(RAW, [100.0, -100.0], [0, 0]).tolist() == [100, -100]


def test_identical_prompts_in_different_slots_stay_apart():
    assert advantages(RAW, [0, 2, 10, 14], [0, 0, 1, 1]).tolist() == [-1, 1, -2, 2]


def test_groups_share_what_they_are_told_to_share():
    slots, seeds, forks = [0] * 4 + [1] * 4, [0, 0, 1, 1] * 2, [3, 5, 3, 5] * 2
    rewards = [0, 1, 2, 7, 0, 0, 0, 4]

    def of(*keys):
        credit = GroupCredit(group_by=keys, std="none", limit=None)
        return advantages(credit, rewards, slots, seeds=seeds, forks=forks).tolist()

    assert of("prompt") == [-2.5, -1.5, -0.5, 4.5, -1, -1, -1, 3]
    assert of("prompt", "seed") == [-0.5, 0.5, -2.5, 2.5, 0, 0, -2, 2]
    assert of("prompt", "fork") == [-1, -3, 1, 3, 0, -2, 0, 2]
    assert of("prompt", "seed", "fork") == [0] * 8
    assert of("seed") == [-0.25, 0.75, -1.25, 3.75, -0.25, -0.25, -3.25, 0.75]


@pytest.mark.parametrize("invalid", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("std", ["group", "global", "none"])
def test_an_invalid_reward_takes_no_part_and_gets_no_advantage(invalid, std):
    credit = GroupCredit(std=std)
    got = advantages(credit, [0, invalid, 3, 1, 5], [0, 0, 0, 1, 1])
    assert got[1] == 0
    assert_close(got[[0, 2, 3, 4]], advantages(credit, [0, 3, 1, 5], [0, 0, 1, 1]))


def test_a_group_without_a_valid_reward_has_no_advantage():
    nan = float("nan")
    assert advantages(GroupCredit(ddof=1), [nan, nan, 2.0, nan], [0, 0, 1, 1]).tolist() == [0] * 4


TWO = {"a": torch.tensor([0.0, 2.0, 5.0, 5.0]), "b": torch.tensor([10.0, -10.0, 0.0, 40.0])}
PAIRS = leaves_of([0, 0, 1, 1])


def test_rewards_can_be_added_before_they_are_normalised():
    # 2a + b/10: 1, 3 | 10, 14
    credit = GroupCredit(std="none", limit=None)
    got = credit.advantages(TWO, {"a": 2.0, "b": 0.1}, PAIRS)
    assert_close(got, torch.tensor([[-1.0], [1.0], [-2.0], [2.0]]))


def test_rewards_can_be_normalised_each_and_then_added():
    # Of each reward the advantages are +-1, or 0 where it is flat; weights act on those.
    credit = GroupCredit(combine="sum_advantages", epsilon=0)
    got = credit.advantages(TWO, {"a": 2.0, "b": 0.1}, PAIRS)
    assert_close(got, torch.tensor([[-2 + 0.1], [2 - 0.1], [-0.1], [0.1]]))


def test_rewards_can_keep_a_column_each():
    credit = GroupCredit(combine="separate", epsilon=0)
    got = credit.advantages(TWO, {"a": 2.0, "b": 0.1}, PAIRS)
    assert_close(got, torch.tensor([[-2, 0.1], [2, -0.1], [0, -0.1], [0, 0.1]]))


@pytest.mark.parametrize("combine", ["sum_rewards", "sum_advantages", "separate"])
def test_a_sample_without_one_of_its_rewards_is_invalid_for_all(combine):
    rewards = {"a": torch.tensor([0.0, 1.0, 4.0]), "b": torch.tensor([2.0, float("nan"), 5.0])}
    weights, credit = {"a": 1.0, "b": 1.0}, GroupCredit(combine=combine)
    got = credit.advantages(rewards, weights, leaves_of([0, 0, 0]))
    without = {name: values[[0, 2]] for name, values in rewards.items()}
    assert (got[1] == 0).all()
    assert_close(got[[0, 2]], credit.advantages(without, weights, leaves_of([0, 0])))


def test_the_lowest_of_a_group_can_be_left_out_of_its_statistics_alone():
    credit = GroupCredit(trimmed_fraction=0.5, epsilon=0, limit=None)
    got = advantages(credit, [8, 2, 0, 1, 6, 2, float("nan")], [0, 0, 0, 0, 1, 1, 0])
    # Mean and std of 8 and 2 are 5 and 3; of the second group's 6 alone there is no std.
    assert got.tolist()[:4] == pytest.approx([1, -1, -5 / 3, -4 / 3])
    assert got[6] == 0
    without_std = GroupCredit(trimmed_fraction=0.5, std="none", limit=None)
    assert advantages(without_std, [6, 2], [0, 0]).tolist() == [0, -4]
    everywhere = GroupCredit(trimmed_fraction=0.5, std="global", epsilon=0, limit=None)
    # 8, 2 and 6 count: mean 16/3, variance 56/9.
    got = advantages(everywhere, [8, 2, 0, 1, 6, 2], [0, 0, 0, 0, 1, 1])
    assert got.tolist() == pytest.approx([x / (56 / 9) ** 0.5 for x in (3, -3, -5, -4, 0, -4)])
