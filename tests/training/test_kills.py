"""A real process, killed by the system at any instant; what it left behind goes on as if nothing had been.

It trains with the shipped weights: their checkpoints take long enough to be killed in the middle of one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe
from thalweg.training.recipe.schema import Recipe
from training.small_runs import assert_same_run, iterations_saved, metrics_of

OVERRIDES = {
    "iterations": 6,
    "data.prompts_per_iteration": 2,
    "rollout.group_size": 4,
    "rollout.steps": 4,
    "run.save_every": 2,
    "evaluation.every": 3,
    "evaluation.num_prompts": 6,
    "evaluation.diversity_prompts": 1,
    "evaluation.diversity_group": 2,
    "evaluation.steps": 4,
}
TYPED = [f"{key}={json.dumps(value)}" for key, value in OVERRIDES.items()]
PATIENCE = 120.0


def start(*arguments: str) -> "subprocess.Popen[str]":
    """`python -m thalweg ...` in a process group of its own, with as many threads as here."""
    return subprocess.Popen(
        [sys.executable, "-m", "thalweg", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(child: "subprocess.Popen[str]") -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def finish(child: "subprocess.Popen[str]") -> None:
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, errors


def is_training(run: Path) -> bool:
    """The run's folder is there: killed earlier, the process leaves nothing to resume."""
    return (run / "metrics.jsonl").exists()


def kill_when(child: "subprocess.Popen[str]", happened: Callable[[], bool]) -> bool:
    """Kill it in that very state: it is halted first, and goes on where the state has passed meanwhile."""
    end = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < end:
        if happened():
            os.killpg(child.pid, signal.SIGSTOP)
            if happened():
                kill(child)
                return True
            os.killpg(child.pid, signal.SIGCONT)
        time.sleep(0.0005)
    kill(child) if child.poll() is None else child.communicate()
    return False


def test_a_run_killed_between_and_inside_its_saves_equals_the_uninterrupted_one(tmp_path):
    recipe = load_recipe("flow-grpo", OVERRIDES)
    whole = train(recipe, tmp_path / "whole")
    run, delays = tmp_path / "killed", random.Random(0)

    child = start("train", "flow-grpo", *TYPED, "--out", str(run))
    assert kill_when(child, lambda: is_training(run) and bool(list((run / "checkpoints").glob(".partial-*"))))
    assert iterations_saved(run) == []  # it was the first save, and it is not there by half

    for _ in range(2):
        lines = len(metrics_of(run)) if is_training(run) else 0
        child = start("resume", str(run))
        # The lines of before are dropped first; whatever comes then is this process's work.
        went_on = time.monotonic() + PATIENCE
        while child.poll() is None and not _has_begun(run, lines) and time.monotonic() < went_on:
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.5))
        if child.poll() is None:
            kill(child)
        else:
            finish(child)
    finish(start("resume", str(run)))
    assert_same_run(run, whole)


def _has_begun(run: Path, lines: int) -> bool:
    return (run / ".lock").exists() and len((run / "metrics.jsonl").read_text().splitlines()) != lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow-grpo", "diffusion-nft"])
def test_a_run_killed_at_ten_random_instants_equals_the_uninterrupted_one(name, tmp_path):
    # Two recipes, twenty kills.
    recipe: Recipe = load_recipe(name, OVERRIDES | {"iterations": 40, "evaluation.every": 10})
    began = time.monotonic()
    whole = train(recipe, tmp_path / "whole")
    # So short that ten lives do not reach the end, however fast the machine is.
    life = (time.monotonic() - began) / 12
    typed = [*TYPED, "iterations=40", "evaluation.every=10"]
    run, delays, kills, to_start = tmp_path / "killed", random.Random(1), 0, 0.0
    while kills < 10:
        child = (
            start("resume", str(run)) if is_training(run) else start("train", name, *typed, "--out", str(run))
        )
        before = time.monotonic()
        while time.monotonic() - before < PATIENCE and child.poll() is None and not is_training(run):
            time.sleep(0.01)
        to_start = to_start or time.monotonic() - before
        time.sleep(delays.uniform(0, to_start + life))
        if child.poll() is not None:
            finish(child)
            break
        kill(child)
        kills += 1
    assert kills == 10
    finish(start("resume", str(run)))
    assert_same_run(run, whole)
