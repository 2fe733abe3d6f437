"""The examples of docs/extend.md, run as they stand."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import thalweg

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
SMALL = [
    "iterations=2",
    "rollout.group_size=4",
    "rollout.steps=3",
    "data.prompts_per_iteration=2",
    "evaluation.num_prompts=6",
    "evaluation.diversity_prompts=2",
    "evaluation.diversity_group=2",
]


@pytest.mark.parametrize("number", range(len(BLOCKS) // 2))
def test_each_example_trains_as_the_page_says(number, tmp_path, monkeypatch):
    (kind, code), (shell, command) = BLOCKS[2 * number : 2 * number + 2]
    assert (kind, shell) == ("python", "bash")
    name = re.match(r"# (\w+\.py)\n", code)
    assert name is not None
    (tmp_path / name.group(1)).write_text(code, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a point\nanother point\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    program, verb, recipe, *overrides = shlex.split(command.replace("\\\n", " "))
    assert (program, verb) == ("thalweg", "train")
    run = thalweg.train(thalweg.load_recipe(recipe, [*overrides, *SMALL]), out=tmp_path / "run")
    assert run.finished
    lines = thalweg.load_run(run.path).metrics
    # Two samples of a prompt may well be worth the same.
    events = [line["event"] for line in lines if line["event"] != "warning"]
    assert events == ["eval", "train", "train", "eval"]
    assert lines[1]["grad_norm"] > 0
    sys.modules.pop(name.group(1).removesuffix(".py"), None)


def test_each_example_has_at_most_fifty_lines():
    assert all(len(code.splitlines()) <= 50 for kind, code in BLOCKS if kind == "python")
