"""What compared runs came to, and what each recipe paid for the score that the baseline ends with."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BASELINE = "flow-grpo"
"""Whose final score the costs of the others are read at."""
OTHER_TASK = "another task"
"""The cell of a recipe whose base is not that of the baseline."""


@dataclass(frozen=True)
class Result:
    """What one (recipe, seed) came to."""

    recipe: str
    seed: int
    iterations: int
    base: float
    """Held-out accuracy before training; the held-out reward where there is no accuracy."""
    final: float
    best: float
    reward: float
    diversity_kept: float
    """Final diversity over that of the base model."""
    evaluations: int
    backwards: int
    cpu_seconds: float
    """Of the first process."""
    seconds: float
    peak_mb: float
    processes: int
    hardware: str
    claim: str
    learning_rate: float
    """Of the policy, as the trials chose it."""
    budget: float
    """Processor seconds it was given."""
    changes: tuple[str, ...]
    """Keys of the recipe that were set for the comparison."""


Curve = Sequence[Mapping[str, Any]]
"""Evaluations of runs in the order they were made: `recipe`, `seed`, `cpu_seconds`, `evaluations` and the
measures of each."""


def measure(evaluation: Mapping[str, Any]) -> str:
    """What a run is judged by: strict accuracy, or the reward where no world can say what is right."""
    return "accuracy" if "accuracy" in evaluation else "reward"


def cost_to(level: float, curve: Curve, cost: str) -> float | None:
    """What the recipe of `curve` spent until its score, averaged over seeds, first reached `level`; `None` if
    it did not.

    `cost` names what is counted (`cpu_seconds`, `evaluations`). Between evaluations the score of each seed is
    drawn as a straight line; where its run has ended, its last score stands.
    """
    seeds = {line["seed"] for line in curve}
    runs = [[line for line in curve if line["seed"] == seed] for seed in seeds]
    spent = [np.array([line[cost] for line in run], dtype=float) for run in runs]
    scores = [np.array([line[measure(line)] for line in run], dtype=float) for run in runs]
    grid = np.unique(np.concatenate(spent))
    mean = np.mean([np.interp(grid, x, y) for x, y in zip(spent, scores, strict=True)], axis=0)
    reached = np.flatnonzero(mean >= level)
    if len(reached) == 0:
        return None
    after = reached[0]
    if after == 0:
        return float(grid[0])
    return float(np.interp(level, mean[after - 1 : after + 1], grid[after - 1 : after + 1]))


def table(results: Sequence[Result], curve: Curve = ()) -> str:
    """Markdown: a row a recipe, mean and sample standard deviation over seeds.

    Where the baseline is among them, the last columns but one say what each recipe spent until it reached the
    baseline's final score and, in brackets, how often that cost would fit into the baseline's own: of
    processor time only if both ran on the same hardware.
    """
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("learning rate", "learning_rate", lambda v: f"{v:.2g}"),
        ("base", "base", lambda v: f"{v:.3f}"),
        ("final", "final", lambda v: f"{v:.3f}"),
        ("best", "best", lambda v: f"{v:.3f}"),
        ("held-out reward", "reward", lambda v: f"{v:.3f}"),
        ("diversity kept", "diversity_kept", lambda v: f"{v:.2f}"),
        ("iterations", "iterations", lambda v: f"{v:.0f}"),
        ("passes", "evaluations", lambda v: f"{v:.0f}"),
        ("with gradient", "backwards", lambda v: f"{v:.0f}"),
        ("CPU s", "cpu_seconds", lambda v: f"{v:.0f}"),
        ("seconds", "seconds", lambda v: f"{v:.0f}"),
        ("peak MB", "peak_mb", lambda v: f"{v:.0f}"),
    ]
    names = list(dict.fromkeys(r.recipe for r in results))
    costs = _costs(results, curve) if curve and BASELINE in names else {}
    titles = ["recipe", "seeds", *(title for title, _, _ in columns), "hardware", *costs, "published claim"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in names:
        rows = [asdict(r) for r in results if r.recipe == name]
        cells = [name, ", ".join(str(row["seed"]) for row in rows)]
        for _, key, shown in columns:
            values = [float(row[key]) for row in rows]
            spread = f" ± {shown(statistics.stdev(values))}" if len(set(values)) > 1 else ""
            cells.append(shown(statistics.mean(values)) + spread)
        cells.append(", ".join(_hardware(results, name)))
        cells += [column[name] for column in costs.values()]
        lines.append("| " + " | ".join([*cells, rows[0]["claim"]]) + " |")
    return "\n".join(lines) + "\n"


def _costs(results: Sequence[Result], curve: Curve) -> dict[str, dict[str, str]]:
    """A column for processor time and one for passes: title, and the cell of each recipe."""
    baseline = [r for r in results if r.recipe == BASELINE]
    level = statistics.mean(r.final for r in baseline)
    columns: dict[str, dict[str, str]] = {}
    for cost, title in (("cpu_seconds", "CPU s"), ("evaluations", "passes")):
        own = cost_to(level, [line for line in curve if line["recipe"] == BASELINE], cost)
        column = columns[f"{title} to {level:.3f}"] = dict[str, str]()
        for name in dict.fromkeys(r.recipe for r in results):
            rows = [r for r in results if r.recipe == name]
            if {r.base for r in rows} != {r.base for r in baseline}:
                column[name] = OTHER_TASK
                continue
            spent = cost_to(level, [line for line in curve if line["recipe"] == name], cost)
            alike = cost == "evaluations" or _hardware(results, name) == _hardware(results, BASELINE)
            ratio = f" ({own / spent:.1f}x)" if own and spent and alike else ""
            column[name] = "not reached" if spent is None else f"{spent:.0f}{ratio}"
    return columns


def _hardware(results: Sequence[Result], recipe: str) -> list[str]:
    """What its runs were made on, each once."""
    return sorted({r.hardware for r in results if r.recipe == recipe})
