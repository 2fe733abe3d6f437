"""Fixtures of these tests."""

import json
import shutil

import pytest

from cli.command import thalweg
from training.small_runs import CHEAP, tiny_world

__all__ = ["thalweg", "tiny_world"]

SMALL = [f"{key}={json.dumps(value)}" for key, value in CHEAP.items()] + ["rollout.group_size=4"]


@pytest.fixture
def train(thalweg, tiny_world):
    """Calls `thalweg train` with few samples."""
    return lambda recipe, *arguments: thalweg("train", recipe, *SMALL, *arguments)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Where the first test that wants a run leaves it for the others."""
    return tmp_path_factory.mktemp("made-once") / "run"


@pytest.fixture
def run(train, made_once, tmp_path):
    """A small finished run of flow-grpo of its own: two iterations, a checkpoint of each."""
    if not made_once.exists():
        done = train("flow-grpo", "run.save_every=1", "--out", made_once)
        assert done.code == 0, done.err
    return shutil.copytree(made_once, tmp_path / "run")
