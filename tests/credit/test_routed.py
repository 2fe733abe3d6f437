"""Elements that are paid much attention count more; which part hears what: `tests/training/test_parts.py`."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit import RoutedCredit
from thalweg.credit.routed import Attended
from thalweg.objectives.surrogate import squared
from thalweg.rollout import Deterministic, Rollout, Root, grow

NAN = torch.nan
PAID = torch.tensor([[5.0, 1, 4, 2, 3, NAN, NAN], [1.0, 2, 3, 4, 5, NAN, NAN]])


def test_the_most_attended_elements_of_each_sample_get_the_weight():
    now = Attended(warmup=0)
    assert_close(  # two of five
        now.weights(PAID, 0), torch.tensor([[1.5, 1, 1.5, 1, 1, 1, 1], [1.0, 1, 1, 1.5, 1.5, 1, 1]])
    )
    few = Attended(warmup=0, weight=3.0, fraction=0.01)
    assert_close(few.weights(PAID, 0), torch.tensor([[3.0, 1, 1, 1, 1, 1, 1], [1.0, 1, 1, 1, 3, 1, 1]]))
    tied = torch.tensor([[2.0, 1, 2, 2, 1]])
    assert_close(now.weights(tied, 0), torch.tensor([[1.5, 1, 1.5, 1.5, 1]]))


def test_the_order_alone_decides():
    # Clipping at a high percentile and rescaling to [0, 1], as the authors do, keeps the order.
    paid = torch.rand(3, 200, generator=torch.Generator().manual_seed(0))
    low, high = paid.amin(1, keepdim=True), paid.quantile(0.99, 1, keepdim=True)
    rescaled = (paid.minimum(high) - low) / (high - low)
    now = Attended(warmup=0)
    assert torch.equal(now.weights(rescaled, 0), now.weights(paid, 0))
    assert_close((now.weights(paid, 0) == 1.5).sum(1), torch.full((3,), 80))


@pytest.mark.parametrize(("iteration", "expected"), [(0, 1.0), (100, 1.125), (400, 1.5), (1000, 1.5)])
def test_the_weight_rises_in_a_straight_line(iteration, expected):
    assert Attended().weight_at(iteration) == pytest.approx(expected)
    assert float(Attended().weights(PAID, iteration)[0, 0]) == pytest.approx(expected)


@pytest.fixture
def forest(linear_policy):
    policy = linear_policy()
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=2)
    grown = grow(policy, [Prompt("a")], [Root(0, 0, 0, 0), Root(0, 1, 1, 0)], rollout, seed=0, iteration=200)
    size = grown.latents[0].numel()
    paid = torch.arange(2.0 * size).view(2, size)
    paid[:, -1] = NAN
    return replace(grown, parts=(size - 1, 1), attention=paid.view_as(grown.latents))


def assigned(forest, **settings):
    credit = RoutedCredit(parts=(("seen",), ("heard",)), **settings)
    scores = Scores({"seen": torch.tensor([1.0, 2.0]), "heard": torch.tensor([2.0, 1.0])})
    return credit.assign(forest, scores, {"seen": 1.0, "heard": 1.0}, Processes())


def test_regions_are_those_of_the_parts_times_the_weights_of_the_iteration(forest):
    plain, weighed = assigned(forest), assigned(forest, attended=Attended(fraction=0.5))
    assert plain.regions is not None and weighed.regions is not None
    assert torch.equal(plain.leaves, weighed.leaves)
    own = Attended(fraction=0.5).weights(forest.attention, 200)
    assert float(own.max()) == pytest.approx(1.25)  # half way from 1 to 1.5
    assert_close(weighed.regions[:, 0], plain.regions[:, 0] * own)
    assert torch.equal(weighed.regions[:, 1], plain.regions[:, 1])  # nobody looked at the second part


def test_a_weight_of_one_is_plain_routed_credit(forest):
    first, plain = replace(forest, iteration=0), assigned(forest).regions
    idle = assigned(forest, attended=Attended(weight=1.0, warmup=0)).regions
    rising = assigned(first, attended=Attended()).regions
    assert plain is not None and idle is not None and rising is not None
    assert torch.equal(idle, plain) and torch.equal(rising, plain)


def test_the_error_of_a_part_is_the_weighted_mean_of_its_elements():
    errors = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    region = Attended(warmup=0, weight=2.0).weights(torch.tensor([[0.0, 9, 0, 8, NAN]]), 0)
    region = region * torch.tensor([1.0, 1, 1, 1, 0])
    # (1 + 2 * 4 + 9 + 2 * 16) / (1 + 2 + 1 + 2)
    assert_close(squared(errors, region), torch.tensor([50 / 6]))
