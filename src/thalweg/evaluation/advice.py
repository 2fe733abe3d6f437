"""Warnings in words: what a run's metrics say that a curve of rising reward hides, and what to try.

Every rule compares the newest evaluation with the base (the first one) or with the best, and stays silent
where a metric is missing. The thresholds are ours; they mark what deserves a look, not what is certainly
wrong.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from thalweg.evaluation.charts import number
from thalweg.evaluation.confidence import difference
from thalweg.evaluation.record import Line, accuracy_of, number_in, series, task_names

DIVERSITY_FALL = 0.25
HELD_OUT_FALL = 0.02
STATISTIC_SHIFT = 0.25
BORDER_SHIFT = 0.05
DRIFT = 0.5
DUPLICATE_RISE = 0.1
NO_VARIANCE = 0.5
RATIO_SHARE = 0.01
RECENT = 10  # train lines that "lately" means


def warnings(
    evals: Sequence[Line],
    trains: Sequence[Line],
    *,
    clip_range: float | None = None,
    draws_steps: bool = True,
    draws_samples: bool = True,
) -> list[str]:
    """One full sentence a finding: the metric, its numbers, what to try.

    `clip_range` as in the recipe, and whether its plan draws steps, and its samples are not all given: advice
    names no setting that would not act.
    """
    rules: list[Callable[[Sequence[Line]], list[str]]] = [
        _accuracy_fell,
        _held_out_fell,
        _tasks_fell,
        partial(_diversity_fell, draws_steps=draws_steps),
        _drifted,
        _duplicates_rose,
        _statistics_moved,
        _no_gain,
    ]
    found = [text for rule in rules for text in rule(evals)] if len(evals) > 1 else []
    no_variance = partial(_no_variance, draws_steps=draws_steps, draws_samples=draws_samples)
    for rule in (no_variance, partial(_ratio_deviates, clip_range=clip_range), _skipped, _invalid):
        found += rule(trains)
    return found


def _ends(evals: Sequence[Line], name: str) -> tuple[float, float] | None:
    """A metric at the base and at the newest evaluation."""
    values = [number_in(evals[0], name), number_in(evals[-1], name)]
    return (values[0], values[1]) if values[0] is not None and values[1] is not None else None


def _rise_of_reward(evals: Sequence[Line], since: Line) -> str:
    """A clause about the reward, empty unless it rose since the line."""
    then, now = number_in(since, "reward"), number_in(evals[-1], "reward")
    return (
        f" while `reward` rose from {then:.3g} to {now:.3g}"
        if then is not None and now is not None and now > then
        else ""
    )


def _at(line: Line) -> str:
    return f"iteration {number_in(line, 'iteration') or 0:.0f}"


def _accuracy_fell(evals: Sequence[Line]) -> list[str]:
    known = [(line, estimate) for line in evals if (estimate := accuracy_of(line))]
    if len(known) < 2 or known[-1][0] is not evals[-1]:
        return []
    (peak_line, peak), last = max(known, key=lambda pair: pair[1].value), known[-1][1]
    if difference(last, peak).high >= 0:
        return []
    return [
        f"`accuracy` fell from {peak.value:.1%} at {_at(peak_line)} to {last.value:.1%}"
        f"{_rise_of_reward(evals, peak_line)}, more than chance explains: use the checkpoint near "
        f"{_at(peak_line)}, and for a longer run try a "
        "smaller `optim.learning_rate` or more weight on the KL term."
    ]


def _held_out_fell(evals: Sequence[Line]) -> list[str]:
    name = "monitor/held_out_reward"
    known = [(line, value) for line in evals if (value := number_in(line, name)) is not None]
    if len(known) < 2 or known[-1][0] is not evals[-1]:
        return []
    peak_line, peak = max(known, key=lambda pair: pair[1])
    last, rise = known[-1][1], _rise_of_reward(evals, peak_line)
    if not rise or peak - last <= HELD_OUT_FALL * abs(peak):
        return []
    return [
        f"`{name}` fell from {peak:.3g} at {_at(peak_line)} to {last:.3g}{rise}: the policy may be pleasing "
        f"the trained "
        "reward alone, so compare the images of both times, then stop earlier, add the held-out reward with "
        "a small "
        "weight, or put more weight on the KL term."
    ]


def _tasks_fell(evals: Sequence[Line]) -> list[str]:
    tasks = task_names(evals)
    base, last = accuracy_of(evals[0]), accuracy_of(evals[-1])
    # The overall interval is a mean over tasks, so a task's own is about √T times as wide.
    width = math.hypot(base.high - base.low, last.high - last.low) / 2 if base and last else 0.0
    chance = width * math.sqrt(len(tasks))
    found = []
    for task in tasks:
        ends = _ends(evals, f"accuracy/{task}")
        if ends is None or ends[1] >= ends[0]:
            continue
        what = "try more training prompts of this task, or a longer run with a smaller `optim.learning_rate`"
        if ends[0] - ends[1] < chance:
            what = f"chance alone moves a task by about {chance:.0%}, so evaluate on more prompts, or {what}"
        found.append(f"`accuracy/{task}` is below its base, {ends[1]:.1%} after {ends[0]:.1%}: {what}.")
    return found


def _diversity_fell(evals: Sequence[Line], draws_steps: bool) -> list[str]:
    found, last = [], "raise `rollout.kernel.noise_level`" if draws_steps else "reward diversity"
    for name in ("diversity/distance", "diversity/vendi", "diversity/attribute_entropy"):
        ends = _ends(evals, name)
        # A Vendi score of 1 means all images alike, so only what lies above 1 can be lost.
        nothing = 1.0 if name == "diversity/vendi" else 0.0
        if (
            ends
            and ends[0] > nothing
            and (fall := 1 - (ends[1] - nothing) / (ends[0] - nothing)) > DIVERSITY_FALL
        ):
            found.append(
                f"`{name}` fell by {fall:.0%}, from {ends[0]:.3g} to {ends[1]:.3g}, so the images of one "
                f"prompt look more "
                f"alike than the base's: stop earlier, put more weight on the KL term, or {last}."
            )
    return found


def _drifted(evals: Sequence[Line]) -> list[str]:
    found = []
    drift, border = number_in(evals[-1], "monitor/drift"), number_in(evals[-1], "monitor/border")
    if drift is not None and drift > DRIFT:
        found.append(
            f"`monitor/drift` is {drift:.2f}, where 0 is the base and 1 the spread of the base's own "
            f"images, so the policy "
            "draws another kind of picture: see whether the before/after grid shows a change nobody asked "
            "for, and if so "
            "put more weight on the KL term or lower `optim.learning_rate`."
        )
    if border is not None and border > BORDER_SHIFT:
        found.append(
            f"`monitor/border` is {border:.3f}, so the edges of the pictures moved by {255 * border:.0f} of "
            f"255 grey levels "
            "from the base's: look for bleached backgrounds, frames or patterns in the before/after grid, "
            "and put more "
            "weight on the KL term if you find them."
        )
    return found


def _duplicates_rose(evals: Sequence[Line]) -> list[str]:
    ends = _ends(evals, "monitor/duplicates")
    if ends is None or ends[1] - ends[0] <= DUPLICATE_RISE:
        return []
    return [
        f"`monitor/duplicates` rose from {ends[0]:.0%} to {ends[1]:.0%} of the images, so the policy "
        f"repeats itself within "
        "a prompt: stop earlier, put more weight on the KL term, or reward diversity."
    ]


def _statistics_moved(evals: Sequence[Line]) -> list[str]:
    found = []
    for name in ("brightness", "saturation", "contrast", "high_frequency"):
        ends = _ends(evals, f"monitor/{name}")
        if ends and ends[0] > 0 and abs(ends[1] / ends[0] - 1) > STATISTIC_SHIFT:
            found.append(
                f"`monitor/{name}` moved by {ends[1] / ends[0] - 1:+.0%} from the base, from {ends[0]:.3g} "
                f"to {ends[1]:.3g}: "
                "see in the before/after grid whether that is what the prompts ask for, otherwise put more "
                "weight on the "
                "KL term."
            )
    return found


def _no_gain(evals: Sequence[Line]) -> list[str]:
    base, last = accuracy_of(evals[0]), accuracy_of(evals[-1])
    if base is None or last is None or last.high == last.low:
        return []
    gain = difference(last, base)
    if gain.low > 0 or gain.high < 0:
        return []
    return [
        f"`accuracy` went from {base.value:.1%} to {last.value:.1%}, a change of {100 * gain.value:+.1f} "
        f"points that "
        f"chance explains (95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}): train for more "
        f"`iterations`, "
        "or evaluate on more prompts."
    ]


def _lately(trains: Sequence[Line], name: str) -> float | None:
    values = [value for line in trains if (value := number_in(line, name)) is not None][-RECENT:]
    return sum(values) / len(values) if values else None


def _no_variance(trains: Sequence[Line], draws_steps: bool, draws_samples: bool) -> list[str]:
    share = _lately(trains, "zero_variance_fraction")
    if share is None or share <= NO_VARIANCE:
        return []
    remedy = "use rewards that tell given samples apart, or other prompts"
    if draws_samples:
        noise = " or `rollout.kernel.noise_level`" if draws_steps else ""
        remedy = (
            f"raise `rollout.group_size`{noise}, or train on prompts that are neither too easy nor too hard"
        )
    return [
        f"`zero_variance_fraction` was {share:.0%} lately, so in most groups all images earn the same and "
        f"teach nothing: {remedy}."
    ]


def _ratio_deviates(trains: Sequence[Line], clip_range: float | None) -> list[str]:
    values = series(trains, "ratio_deviation")
    if clip_range is None or not values:
        return []
    iteration, worst = max(values, key=lambda pair: pair[1])
    if worst <= RATIO_SHARE * clip_range:
        return []
    return [
        f"`ratio_deviation` reached {number(worst)} at iteration {iteration:.0f}, above 1% of the clip "
        f"range of "
        f"{number(clip_range)}, so the first update already sees ratios that are not 1: roll out in the "
        f"precision and batch "
        "shape of the update, or set `old_log_prob: recompute`."
    ]


def _skipped(trains: Sequence[Line]) -> list[str]:
    skipped = max((value for _, value in series(trains, "skipped_updates")), default=0.0)
    if skipped == 0:
        return []
    updates = "update" if skipped == 1 else "updates"
    return [
        f"`skipped_updates` counts {skipped:.0f} {updates} left out because the gradient was not finite: "
        "lower `optim.learning_rate`, and check the rewards for values far out of range."
    ]


def _invalid(trains: Sequence[Line]) -> list[str]:
    invalid = sum(value for _, value in series(trains, "invalid_rewards"))
    if invalid == 0:
        return []
    return [
        f"`invalid_rewards` adds up to {invalid:.0f} samples whose reward was not a number, so they taught "
        "nothing: find the reward that returns NaN among `reward/...`, and see which images it cannot judge."
    ]
