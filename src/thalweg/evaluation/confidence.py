"""Confidence intervals of accuracies, in closed form.

One task, k right of n (Wilson 1927), z = 1.96 at 95 %:

    centre = (p + z²/(2n)) / (1 + z²/n),   half = z / (1 + z²/n) · √(p(1-p)/n + z²/(4n²)),   p = k/n

The mean of T task accuracies, and the difference of two estimates, recover their variances from the limits
(Zou, Huang & Zhang 2009, CSDA 53:1080; Newcombe 1998 for T = 2):

    low = p̄ - √Σ_t ((p_t - l_t)/T)²,   high = p̄ + √Σ_t ((u_t - p_t)/T)²

which stays inside [0, 1] and does not shrink to nothing at p = 1, where the textbook interval does.
Images count as independent trials. Several of one prompt are less than that: the interval is then too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from thalweg.core.errors import UserError
from thalweg.core.values import Metrics


@dataclass(frozen=True)
class Estimate:
    """A value and the limits of its confidence interval."""

    value: float
    low: float
    high: float


def wilson(right: int, total: int, *, level: float = 0.95) -> Estimate:
    """The share right/total with its Wilson score interval."""
    if not 0 <= right <= total or total == 0:
        raise UserError(
            f"{right} right of {total}: an accuracy needs 0 <= right <= total and at least one trial"
        )
    z, p = NormalDist().inv_cdf((1 + level) / 2), right / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    # At p = 0 and 1 a limit equals p exactly; rounding must not put it beyond.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def mean_of(tasks: Sequence[Estimate]) -> Estimate:
    """The plain mean of independent estimates: every task weighs the same, however many trials it had."""
    value = sum(t.value for t in tasks) / len(tasks)
    below = math.hypot(*(t.value - t.low for t in tasks)) / len(tasks)
    above = math.hypot(*(t.high - t.value for t in tasks)) / len(tasks)
    return Estimate(value, value - below, value + above)


def difference(after: Estimate, before: Estimate) -> Estimate:
    """after - before as if independent; with the same prompts and seeds in both, the interval is too wide."""
    value = after.value - before.value
    return Estimate(
        value,
        value - math.hypot(after.value - after.low, before.high - before.value),
        value + math.hypot(after.high - after.value, before.value - before.low),
    )


def accuracy_metrics(counts: Mapping[str, tuple[int, int]]) -> Metrics:
    """Accuracy of each task from its (right, total), their mean and its 95% interval, as logged."""
    tasks = {name: wilson(right, total) for name, (right, total) in counts.items()}
    overall = mean_of(list(tasks.values()))
    return {
        "accuracy": overall.value,
        "accuracy_low": overall.low,
        "accuracy_high": overall.high,
        **{f"accuracy/{name}": task.value for name, task in tasks.items()},
    }
