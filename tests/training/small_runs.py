"""Runs of a few seconds: every shipped recipe with few samples, and what two runs must have in common."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from thalweg.credit import BlameCredit, RoutedCredit
from thalweg.rewards import judges_steps
from thalweg.rollout import Branch, BranchBudget, Candidates, Rollout, Tree
from thalweg.training.folder.checkpoint import complete
from thalweg.training.loop import Run, train
from thalweg.training.recipe.load import load_recipe
from thalweg.training.recipe.schema import Recipe
from thalweg.worlds import WORLDS

CHEAP = {
    "iterations": 2,
    "rewards": ["brightness"],  # tells the images of any network apart
    "data.prompts_per_iteration": 2,
    "evaluation.num_prompts": 6,
    "evaluation.diversity_prompts": 1,
    "evaluation.diversity_group": 2,
    "evaluation.steps": 2,
}


@pytest.fixture
def tiny_world(tiny_policy, tmp_path_factory, monkeypatch) -> Path:
    """Put a tiny random network in the place of the scenes world's base; its weights."""
    network = tiny_policy().network
    weights = tmp_path_factory.mktemp("tiny") / "base.safetensors"
    save_file(network.state_dict(), weights, {"config": network.config.model_dump_json()})
    monkeypatch.setitem(WORLDS, "scenes", replace(WORLDS["scenes"], weights=weights))
    return weights


def small(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe with as few samples as its plan allows; its structure stays."""
    shipped = load_recipe(name)
    rewards = {} if "rewards" in (overrides or {}) else _rewards(shipped)
    return load_recipe(name, CHEAP | _few(shipped.rollout) | rewards | dict(overrides or {}))


def _few(rollout: Rollout) -> dict[str, Any]:
    """Four samples of a prompt, or two of each branch step; a tree forks twice into two."""
    plan = rollout.plan
    few: dict[str, Any] = {"rollout.group_size": 4}
    if isinstance(plan, Branch):
        few["rollout.group_size"] = 2 * plan.num_branch_steps * rollout.num_roots
    if isinstance(plan, BranchBudget):
        few |= {"rollout.group_size": 4 * rollout.num_roots, "rollout.plan.branches": [2, 0, 2]}
    if isinstance(plan, Tree):
        few |= {"rollout.plan.branching": 2, "rollout.plan.forks": [0, 1]}
    if isinstance(plan, Candidates):
        few["rollout.plan.num_candidates"] = 3
    if rollout.explore is not None:
        few["rollout.explore.pool"] = 8
    return few


def _rewards(recipe: Recipe) -> dict[str, Any]:
    """The cheap reward of samples, and what else is read: rewards of noisy states, a judge of places."""
    if isinstance(recipe.credit, RoutedCredit):
        return {"rewards": ["brightness", "loudness"], "credit.parts": [["brightness"], ["loudness"]]}
    of_steps = [reward for reward in recipe.rewards if judges_steps(reward)]
    judge = [{"kind": "world", "weight": 0}] if isinstance(recipe.credit, BlameCredit) else []
    return {"rewards": [*CHEAP["rewards"], *of_steps, *judge]}


class Killed(BaseException):
    """Ends a run from outside its own control flow, as a kill does: nothing may catch it."""


def kill_at(iteration: int) -> Callable[[str, dict[str, Any]], None]:
    """A progress callback that dies once the metrics of this iteration are written, before it is saved."""

    def kill(event: str, line: dict[str, Any]) -> None:
        if event == "train" and line["iteration"] == iteration:
            raise Killed

    return kill


def train_until_killed(recipe: Recipe, out: Path, iteration: int) -> None:
    """Train, and die in this iteration."""
    with pytest.raises(Killed):
        train(recipe, out, kill_at(iteration))


def metrics_of(run: Run | Path) -> list[dict[str, Any]]:
    """All metric lines; every line of the file must be whole."""
    path = run if isinstance(run, Path) else run.path
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def reproducible(run: Run | Path) -> list[dict[str, Any]]:
    """The metric lines without what measures the machine."""
    return [{k: v for k, v in line.items() if not measures_the_machine(k)} for line in metrics_of(run)]


def measures_the_machine(name: str) -> bool:
    return name == "seconds" or name.startswith(("time/", "memory/")) or name.endswith("_per_second")


def trains(run: Run | Path) -> list[dict[str, Any]]:
    return [line for line in reproducible(run) if line["event"] == "train"]


def iterations_saved(run: Run | Path) -> list[int]:
    path = run if isinstance(run, Path) else run.path
    return [int(folder.name) for folder in complete(path / "checkpoints")]


def saved_tensors(run: Run | Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the last checkpoint: all named weights and the optimizer."""
    path = run if isinstance(run, Path) else run.path
    for file in sorted(complete(path / "checkpoints")[-1].glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            yield f"{file.name}: {name}", tensor


def saved_state(run: Run | Path) -> dict[str, Any]:
    """The counters of the last checkpoint."""
    path = run if isinstance(run, Path) else run.path
    state = json.loads((complete(path / "checkpoints")[-1] / "state.json").read_text())
    return {name: value for name, value in state.items() if not name.endswith("seconds")}


def assert_same_run(a: Run | Path, b: Run | Path) -> None:
    """Equal bit for bit: reproducible metrics, all weights, the optimizer, the counters."""
    assert reproducible(a) == reproducible(b)
    assert saved_state(a) == saved_state(b)
    for (name, x), (other, y) in zip(saved_tensors(a), saved_tensors(b), strict=True):
        assert name == other
        assert torch.equal(x, y), name
