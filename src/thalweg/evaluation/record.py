"""Reads a run's folder back, whatever state the run left it in."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thalweg.core.errors import UserError
from thalweg.evaluation.confidence import Estimate

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """What a run's folder says: metric lines in order, its facts, its recipe as text."""

    folder: Path
    evals: list[Line]
    trains: list[Line]
    unreadable: int
    """Lines of metrics.jsonl that are no JSON object; a half-written last one does not count."""
    facts: Mapping[str, Any]
    """run.json, or nothing."""
    recipe: str
    """recipe.yaml, or nothing."""

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.folder.resolve().name)

    @property
    def lines(self) -> list[Line]:
        return [*self.trains, *self.evals]

    def last(self, name: str) -> float | None:
        """The largest value of a counter that only grows (iteration, seconds, evaluations, backwards)."""
        return max(
            (value for line in self.lines if (value := number_in(line, name)) is not None), default=None
        )

    def setting(self, dotted: str) -> Any:
        """A value of the recipe by its dotted key, or None."""
        try:
            value = yaml.safe_load(self.recipe)
        except yaml.YAMLError:
            return None
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(folder: Path) -> Record:
    """The record of a run's folder; whatever is missing is empty."""
    files = {name: folder / name for name in ("metrics.jsonl", "run.json", "recipe.yaml")}
    if not any(path.is_file() for path in files.values()):
        raise UserError(
            f"{folder}: not a run's folder, it holds none of {', '.join(files)}: give the folder of a run"
        )
    texts = {
        name: path.read_text("utf-8", "replace") if path.is_file() else "" for name, path in files.items()
    }
    lines, unreadable = _parse(texts["metrics.jsonl"])
    return Record(
        folder=folder,
        evals=[line for line in lines if line.get("event") == "eval"],
        trains=[line for line in lines if line.get("event") == "train"],
        unreadable=unreadable,
        facts=_object(texts["run.json"]) or {},
        recipe=texts["recipe.yaml"],
    )


def number_in(line: Line, name: str) -> float | None:
    """The finite number under `name`, or None."""
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def series(lines: Sequence[Line], name: str, x: str = "iteration") -> list[tuple[float, float]]:
    """The (x, value) of every line that has both as finite numbers."""
    pairs = ((number_in(line, x), number_in(line, name)) for line in lines)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def accuracy_of(line: Line) -> Estimate | None:
    """Accuracy with its interval; without limits in the line the interval has no width."""
    value = number_in(line, "accuracy")
    if value is None:
        return None
    low, high = number_in(line, "accuracy_low"), number_in(line, "accuracy_high")
    return Estimate(value, value if low is None else low, value if high is None else high)


def task_names(evals: Sequence[Line]) -> list[str]:
    """Tasks in the order in which the lines name them."""
    return list(
        dict.fromkeys(key.split("/", 1)[1] for line in evals for key in line if key.startswith("accuracy/"))
    )


def _parse(text: str) -> tuple[list[Line], int]:
    """The objects of a JSON-lines text, and how many whole lines are none."""
    *whole, rest = text.split("\n")  # after the last newline: nothing, or what a kill left half-written
    parsed = [_object(line) for line in whole if line.strip()]
    unreadable = sum(line is None for line in parsed)
    return [line for line in [*parsed, _object(rest)] if line is not None], unreadable


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
