import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.core.errors import UserError
from thalweg.evaluation import Estimate, accuracy_metrics, difference, mean_of, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_has_the_values_printed_by_newcombe(right, total, low, high):
    # Newcombe 1998, Statistics in Medicine 17:857, Table I, method 3.
    estimate = wilson(right, total)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)
    assert estimate.value == right / total


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)],
)
def test_the_difference_of_two_accuracies_has_the_interval_printed_by_newcombe(after, before, low, high):
    # Newcombe 1998, Statistics in Medicine 17:873, Table II, method 10.
    got = difference(wilson(*after), wilson(*before))
    assert (round(got.low, 4), round(got.high, 4)) == (low, high)


def test_the_level_sets_the_width():
    # p = 1/2: half = z/(1+z²/n) · √(1/(4n) + z²/(4n²)), z = 2.5758 at 99 %.
    z, n = 2.5758, 100
    half = z / (1 + z**2 / n) * math.sqrt(1 / (4 * n) + z**2 / (4 * n**2))
    assert wilson(50, 100, level=0.99).high == pytest.approx(0.5 + half, abs=1e-4)


def test_all_right_is_not_certainty():
    # p = 1: the lower limit is 1 / (1 + z²/n).
    assert wilson(10, 10).low == pytest.approx(1 / (1 + 1.959964**2 / 10), abs=1e-6)
    assert wilson(10, 10).high == 1.0


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(right, total):
    with pytest.raises(UserError, match="right of"):
        wilson(right, total)


def test_a_mean_of_equal_tasks_is_narrower_by_the_root_of_their_number():
    task = Estimate(0.6, 0.5, 0.68)
    overall = mean_of([task] * 4)
    assert (overall.value, overall.low, overall.high) == pytest.approx((0.6, 0.55, 0.64))


def test_every_task_weighs_the_same_however_many_trials_it_has():
    metrics = accuracy_metrics({"single": (1, 1), "counting": (0, 1000)})
    assert metrics["accuracy"] == 0.5
    assert (metrics["accuracy/single"], metrics["accuracy/counting"]) == (1.0, 0.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(any), min_size=1, max_size=6))
def test_the_interval_holds_the_accuracy_and_stays_a_share(counts):
    metrics = accuracy_metrics({str(i): (k, k + wrong) for i, (k, wrong) in enumerate(counts)})
    assert -1e-12 <= metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"] <= 1 + 1e-12
