"""Fixtures of these tests."""

import json

import pytest

from cli.command import thalweg
from training.small_runs import CHEAP, tiny_world

__all__ = ["thalweg", "tiny_world"]

SMALL = [f"{key}={json.dumps(value)}" for key, value in CHEAP.items()] + ["rollout.group_size=4"]


@pytest.fixture
def train(thalweg, tiny_world):
    """Calls `thalweg train` with few samples."""
    return lambda recipe, *arguments: thalweg("train", recipe, *SMALL, *arguments)


@pytest.fixture
def run(train, tmp_path):
    """A small finished run of flow-grpo: two iterations, a checkpoint of each."""
    done = train("flow-grpo", "run.save_every=1", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    return tmp_path / "run"
