"""Every shipped recipe from end to end, with its own weights and rewards and few samples."""

import math
import re
from pathlib import Path

import pytest

from thalweg.training.folder.saved import load_run
from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe, recipe_names
from thalweg.training.weight_rules import Frozen
from training.small_runs import metrics_of, reproducible, saved_tensors, small

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> list[re.Pattern[str]]:
    """The names of docs/metrics.md: first column of its tables; `<name>` stands for any name."""
    cells = [
        line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return [re.compile(re.sub(r"<\w+>", r"[\\w.-]+", re.escape(name).replace(r"\<", "<"))) for name in names]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_trains_and_reports_with_documented_metrics(name, tmp_path):
    rewards = load_recipe(name).rewards
    run = train(small(name, {"rewards": list(rewards)}), tmp_path / "run")
    assert run.finished
    lines = metrics_of(run)
    # So few samples may all earn the same, which is said.
    assert [(line["event"], line["iteration"]) for line in lines if line["event"] != "warning"] == [
        ("eval", 0),
        ("train", 1),
        ("train", 2),
        ("eval", 2),
    ]
    known = documented()
    for line in reproducible(run):
        unknown = [key for key in line if not any(pattern.fullmatch(key) for pattern in known)]
        assert not unknown, f"docs/metrics.md does not name {unknown}"
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
    assert "<html" in (run.path / "report.html").read_text(encoding="utf-8")
    assert lines[-1]["evaluations"] > lines[-1]["backwards"] > 0


WEIGHTS = ["diffusion-nft", "flow-grpo", "rollout-correction", "sol-rl", "tree-grpo"]


@pytest.mark.parametrize(
    "name", WEIGHTS + [pytest.param(n, marks=pytest.mark.slow) for n in recipe_names() if n not in WEIGHTS]
)
def test_a_recipe_moves_the_weights_it_trains_and_keeps_its_reference(name, tiny_world, tmp_path):
    run = train(small(name, {"optim.learning_rate": 0.01}), tmp_path / "run")
    base = load_run(run.path).recipe.model.load().weights.tensors("policy")
    moved = {}
    for key, tensor in saved_tensors(run):
        file, parameter = key.split(": ")
        if file.startswith("weights."):
            kind = file.removeprefix("weights.").removesuffix(".safetensors")
            moved[kind] = max(moved.get(kind, 0.0), float((tensor - base[parameter]).abs().max()))
    assert 1e-3 < moved.pop("policy") < 0.5
    frozen = [name for name, rule in load_recipe(name).weights.items() if isinstance(rule.update, Frozen)]
    assert all(moved.pop(name) == 0 for name in frozen)
    # An average follows, but not all the way.
    assert all(distance > 0 for distance in moved.values())
