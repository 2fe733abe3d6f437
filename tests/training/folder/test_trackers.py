import sys
from types import SimpleNamespace

import pytest

from thalweg.core.errors import UserError
from thalweg.training.folder.trackers import Trackers
from thalweg.training.recipe.load import load_recipe


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_number_of_a_line_under_the_name_of_its_event(name, tmp_path, monkeypatch):
    sent: list[dict[str, float]] = []
    closed: list[str] = []
    run = SimpleNamespace(log=sent.append, finish=lambda: closed.append(name))
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=lambda **settings: run))
    trackers = Trackers(load_recipe("flow-grpo", {"run.trackers": [name]}), tmp_path)
    trackers.log("train", {"iteration": 4, "reward": 0.5, "note": "text stays out"})
    trackers.close()
    assert sent == [{"train/iteration": 4.0, "train/reward": 0.5, "iteration": 4}]
    assert closed == [name]


def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"'trackio' is not installed; `pip install 'thalweg\[trackio\]'`"):
        Trackers(load_recipe("flow-grpo", {"run.trackers": ["trackio"]}), tmp_path)


def test_a_process_that_writes_nothing_opens_no_tracker(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    Trackers(load_recipe("flow-grpo", {"run.trackers": ["wandb"]}), None).log("train", {"iteration": 1})
