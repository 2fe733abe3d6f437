import pytest

from evaluation.synthetic_run import BASE, TRAINED, eval_line, train_line
from thalweg.evaluation import warnings

TRAINS = [train_line(i) for i in range(1, 21)]


def said(after: dict, *, before: dict | None = None, trains=TRAINS) -> list[str]:
    evals = [eval_line(0, BASE | (before or {})), eval_line(20, TRAINED | after)]
    return warnings(evals, trains, clip_range=1e-4)


def test_a_healthy_run_earns_no_warning():
    assert said({}) == []


def test_a_run_without_evaluations_earns_none_either():
    assert warnings([], []) == []
    assert warnings([eval_line(0, BASE)], TRAINS) == []


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            {"monitor/held_out_reward": 0.7},
            ["`monitor/held_out_reward` fell from 0.8", "to 0.7", "rose from 0.61 to 0.87"],
        ),
        (
            {"accuracy/two_object": 0.3},
            ["`accuracy/two_object` is below its base, 30.0% after 50.0%", "training prompts"],
        ),
        ({"diversity/distance": 0.22}, ["`diversity/distance` fell by 50%, from 0.44 to 0.22", "KL"]),
        (
            {"diversity/vendi": 2.1},
            ["`diversity/vendi` fell by 50%, from 3.2 to 2.1"],
        ),  # 1 is no variety at all
        ({"monitor/drift": 0.62}, ["`monitor/drift` is 0.62", "before/after grid"]),
        ({"monitor/border": 0.06}, ["`monitor/border` is 0.060", "15 of 255"]),
        ({"monitor/saturation": 0.3}, ["`monitor/saturation` moved by +50%", "from 0.2 to 0.3"]),
    ],
)
def test_each_finding_names_its_metric_its_numbers_and_a_way_out(after, words):
    (text,) = said(after)
    assert all(word in text for word in words)
    assert text.endswith(".")


def test_duplicates_are_compared_with_the_base():
    (text,) = said({"monitor/duplicates": 0.35}, before={"monitor/duplicates": 0.05})
    assert "from 5% to 35%" in text
    assert said({"monitor/duplicates": 0.35}, before={"monitor/duplicates": 0.3}) == []


def test_a_held_out_reward_may_fall_where_the_reward_does_not_rise():
    assert said({"monitor/held_out_reward": 0.7, "reward": 0.6}) == []


def test_a_fall_of_a_task_within_chance_says_so():
    # Overall half-widths 0.033 and 0.025 over two tasks: √(0.033² + 0.025²) · √2 = 5.9 %.
    (text,) = said({"accuracy/two_object": 0.46})
    assert "chance alone moves a task by about 6%" in text


def test_accuracy_falling_from_its_peak_names_the_better_checkpoint():
    fallen = TRAINED | {"accuracy": 0.75, "accuracy_low": 0.72, "accuracy_high": 0.78, "reward": 0.95}
    (text,) = warnings([eval_line(0, BASE), eval_line(10, TRAINED), eval_line(20, fallen)], TRAINS)
    assert "from 86.1% at iteration 10 to 75.0% while `reward` rose from 0.87 to 0.95" in text


def test_a_gain_within_chance_is_not_called_one():
    small = {"accuracy": 0.60, "accuracy_low": 0.57, "accuracy_high": 0.63}
    (text,) = said(small)
    # Newcombe: 0.017 - √(0.03² + 0.033²), 0.017 + √(0.03² + 0.033²).
    assert "+1.7 points that chance explains (95% interval -2.8 to +6.2)" in text


def test_groups_without_variance_count_lately():
    late = [train_line(i, zero_variance_fraction=0.0 if i <= 10 else 0.6) for i in range(1, 21)]
    (text,) = said({}, trains=late)
    assert "`zero_variance_fraction` was 60% lately" in text
    assert said({}, trains=late[::-1]) == []


@pytest.mark.parametrize(
    ("plan", "words", "no_words"),
    [
        ({}, ["`rollout.group_size` or `rollout.kernel.noise_level`"], []),
        ({"draws_steps": False}, ["raise `rollout.group_size`,"], ["noise_level"]),
        ({"draws_steps": False, "draws_samples": False}, ["given samples"], ["noise_level", "group_size"]),
    ],
)
def test_advice_names_no_setting_that_would_not_act(plan, words, no_words):
    (text,) = warnings([], [train_line(i, zero_variance_fraction=1.0) for i in range(1, 5)], **plan)
    assert all(word in text for word in words)
    assert not any(word in text for word in no_words)


def test_advice_on_diversity_names_noise_where_it_is_drawn_alone():
    lines = [eval_line(0, BASE), eval_line(20, TRAINED | {"diversity/distance": 0.22})]
    (drawn,), (followed,) = warnings(lines, TRAINS), warnings(lines, TRAINS, draws_steps=False)
    assert "raise `rollout.kernel.noise_level`" in drawn
    assert "noise_level" not in followed and "or reward diversity." in followed


def test_a_ratio_deviation_is_measured_by_the_clip_range():
    trains = [train_line(1, ratio_deviation=9e-7), train_line(2, ratio_deviation=2e-6)]
    (text,) = said({}, trains=trains)
    assert "2e−6 at iteration 2" in text and "clip range of 1e−4" in text
    assert warnings([], trains, clip_range=1e-3) == []
    assert warnings([], trains) == []


def test_skipped_updates_are_counted_so_far():
    (text,) = said({}, trains=[train_line(1, skipped_updates=1), train_line(2, skipped_updates=3)])
    assert "`skipped_updates` counts 3 updates" in text


def test_values_that_are_no_numbers_are_passed_over():
    assert said({"monitor/drift": float("nan"), "diversity/distance": None}) == []


def test_invalid_rewards_are_added_up():
    (text,) = said({}, trains=[train_line(1, invalid_rewards=1), train_line(2, invalid_rewards=2)])
    assert "adds up to 3 samples" in text
