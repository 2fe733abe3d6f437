"""A run's folder with known numbers, written as a run writes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Line = dict[str, Any]
BASE: Line = {
    "accuracy": 0.583,
    "accuracy_low": 0.55,
    "accuracy_high": 0.616,
    "accuracy/two_object": 0.50,
    "accuracy/counting": 0.666,
    "reward": 0.61,
    "diversity": 0.44,
    "diversity/distance": 0.44,
    "diversity/vendi": 3.2,
    "monitor/drift": 0.0,
    "monitor/saturation": 0.2,
    "monitor/held_out_reward": 0.8,
}
TRAINED: Line = {
    "accuracy": 0.861,
    "accuracy_low": 0.83,
    "accuracy_high": 0.88,
    "accuracy/two_object": 0.80,
    "accuracy/counting": 0.922,
    "reward": 0.87,
    "diversity": 0.41,
    "diversity/distance": 0.41,
    "diversity/vendi": 3.0,
    "monitor/drift": 0.11,
    "monitor/saturation": 0.21,
    "monitor/held_out_reward": 0.84,
}
RUN = {
    "format": 1,
    "name": "mix-grpo",
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "hardware": {"processor": "Example 9000", "cores": 2},
    "seed": 7,
    "git": "abc1234",
    "command": "thalweg train mix-grpo",
    "started": "2026-05-01T09:30:12",
}
RECIPE = "iterations: 20\nobjective:\n  kind: clipped_ratio\n  clip_range: 1.0e-4\n"


def eval_line(iteration: int, values: Line) -> Line:
    counters = {"seconds": 16.0 * iteration, "evaluations": 2500 * iteration, "backwards": 1000 * iteration}
    return {"event": "eval", "iteration": iteration, **counters, **values}


def train_line(iteration: int, **values: float) -> Line:
    counters = {"seconds": 16.0 * iteration, "evaluations": 2500 * iteration, "backwards": 1000 * iteration}
    usual = {
        "reward": 0.6 + 0.01 * iteration,
        "ratio_deviation": 0.0,
        "zero_variance_fraction": 0.1,
        "samples": 192,
    }
    return {
        "event": "train",
        "iteration": iteration,
        **counters,
        **usual,
        "time/rollout": 6.0,
        "time/update": 9.0,
    } | values


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    def write(
        name: str = "run", *, lines: list[Line] | None = None, tail: str = "", run: Line | None = None
    ) -> Path:
        folder = tmp_path / name
        (folder / "samples").mkdir(parents=True)
        if lines is None:
            lines = [eval_line(0, BASE), *(train_line(i) for i in range(1, 21)), eval_line(20, TRAINED)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        (folder / "run.json").write_text(json.dumps(run or RUN))
        (folder / "recipe.yaml").write_text(RECIPE)
        return folder

    return write


def write_sheets(folder: Path, colours: dict[int, tuple[int, int, int]], *, prompts: list[str]) -> None:
    """Sheets of 2 tiles of 4x4 pixels a prompt, in one colour each."""
    files = {str(i): f"{i:08d}.png" for i in colours}
    for i, colour in colours.items():
        Image.new("RGB", (8, 4 * len(prompts)), colour).save(folder / "samples" / files[str(i)])
    index = {"prompts": prompts, "per_prompt": 2, "tile": [4, 4], "files": files}
    (folder / "samples" / "index.json").write_text(json.dumps(index))
