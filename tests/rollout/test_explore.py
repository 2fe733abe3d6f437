import pytest
import torch

from thalweg.core.noise import Address
from thalweg.rollout import Explore, rank_agreement

EXTREMES = Explore(pool=6, steps=2)


def draw(number: int = 0) -> Address:
    return Address(0, "selection", number)


@pytest.mark.parametrize(
    ("count", "chosen"), [(2, [3, 4]), (4, [1, 3, 4, 5]), (3, [3, 4, 5]), (6, list(range(6)))]
)
def test_the_best_and_the_worst_stay_one_more_of_the_best(count, chosen):
    rewards = torch.tensor([5.0, 1.0, 3.0, 9.0, 0.0, 7.0])
    assert EXTREMES.chosen(rewards, count, draw()).tolist() == chosen


def test_equal_noises_are_chosen_by_chance():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    times = torch.zeros(6)
    for number in range(600):
        chosen = EXTREMES.chosen(rewards, 4, draw(number))
        assert len(set(chosen.tolist())) == 4
        times[chosen] += 1
    assert times[0] == 600
    # 3 of the 5 others: 360 each, standard deviation 12.
    assert (times[1:] - 360).abs().max() < 50


def test_any_noises_are_chosen_where_looking_shall_be_of_no_use():
    explore = Explore(pool=6, steps=2, choose="random")
    rewards = torch.arange(6.0)
    times = torch.zeros(6)
    for number in range(600):
        times[explore.chosen(rewards, 3, draw(number))] += 1
    assert (times - 300).abs().max() < 50


def test_a_noise_without_a_reward_is_chosen_last():
    nan = float("nan")
    assert EXTREMES.chosen(torch.tensor([nan, 1.0, 5.0, nan, 0.0, 9.0]), 4, draw()).tolist() == [1, 2, 4, 5]
    assert len(EXTREMES.chosen(torch.full((6,), nan), 4, draw())) == 4


@pytest.mark.parametrize(
    ("cheap", "full", "agreement"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 90.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),  # 1 - 6 · 2 / (4 · 15)
        ([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0], 4.5 / 22.5**0.5),  # ranks 1, 2.5, 2.5, 4
        ([1.0, 1.0], [1.0, 2.0], 0.0),
    ],
)
def test_agreement_is_the_correlation_of_ranks(cheap, full, agreement):
    assert rank_agreement(torch.tensor(cheap), torch.tensor(full)) == pytest.approx(agreement)
