import math
import os
import signal
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from thalweg.core.errors import UserError
from thalweg.objectives import ClippedRatio
from thalweg.training.folder.saved import load_run
from thalweg.training.loop import resume, train
from training.small_runs import (
    assert_same_run,
    iterations_saved,
    metrics_of,
    reproducible,
    saved_state,
    saved_tensors,
    small,
    trains,
)


def signalling(number, iteration, times=1):
    """A progress callback that sends this process a signal when the iteration's metrics are written."""

    def send(event, line):
        if event == "train" and line["iteration"] == iteration:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_iteration_and_stops_and_the_run_goes_on_from_there(number, tiny_world, tmp_path):
    recipe = small("flow-grpo", {"iterations": 4, "run.save_every": 100, "evaluation.every": 2})
    whole = train(recipe, tmp_path / "whole")
    before = signal.getsignal(number)
    stopped = train(recipe, tmp_path / "run", signalling(number, iteration=3))
    assert (stopped.iteration, stopped.finished) == (3, False)
    assert iterations_saved(stopped)[-1] == 3
    assert (tmp_path / "run" / "report.html").exists()
    assert signal.getsignal(number) is before
    assert_same_run(resume(stopped.path, recipe), whole)


def test_a_signal_during_the_first_evaluation_is_not_lost(tiny_world, tmp_path):
    def send(event, line):
        if event == "eval":
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(small("flow-grpo", {"iterations": 9}), tmp_path / "run", send)
    assert not stopped.finished
    assert stopped.iteration <= 1


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_saved(tiny_world, tmp_path):
    recipe = small("flow-grpo", {"iterations": 3, "run.save_every": 2})
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", signalling(signal.SIGINT, iteration=3, times=2))
    assert iterations_saved(tmp_path / "run") == [2]
    assert_same_run(resume(tmp_path / "run", recipe), whole)


@pytest.mark.parametrize("limit", ["max_seconds", "max_cpu_seconds"])
def test_a_run_stops_and_saves_when_its_time_is_spent(limit, tiny_world, tmp_path):
    keep = {"iterations": 3, "run.keep_best": False}
    whole = train(small("diffusion-nft", keep), tmp_path / "whole")
    stopped = train(small("diffusion-nft", {**keep, f"run.{limit}": 1e-3}), tmp_path / "run")
    assert (stopped.iteration, stopped.finished) == (1, False)
    assert iterations_saved(stopped) == [1]
    again = resume(stopped.path, load_run(stopped.path, [f"run.{limit}=null"]).recipe)
    assert reproducible(again) == reproducible(whole)
    for (name, x), (_, y) in zip(saved_tensors(again), saved_tensors(whole), strict=True):
        assert torch.equal(x, y), name


def test_time_is_counted_over_all_resumptions(tiny_world, tmp_path):
    run = train(small("flow-grpo", {"iterations": 1}), tmp_path / "run")
    spent = metrics_of(run)[-1]["seconds"]
    resume(run.path, load_run(run.path, ["iterations=2"]).recipe)
    seconds = [line["seconds"] for line in metrics_of(run)]
    assert seconds == sorted(seconds)
    assert seconds[-1] > spent


@pytest.fixture
def infinite_losses(monkeypatch):
    """Makes the loss infinite in the given updates, counted from 1 (flow-grpo takes two an iteration)."""
    finite = ClippedRatio.loss

    def during(*updates):
        calls = count(1)

        def loss(self, scalars, rows):
            terms, report = finite(self, scalars, rows)
            return (terms * math.inf if next(calls) in updates else terms), report

        monkeypatch.setattr(ClippedRatio, "loss", loss)

    return during


def test_a_gradient_that_is_not_finite_leaves_weights_and_optimizer_as_they_are(
    infinite_losses, tiny_world, tmp_path
):
    infinite_losses(1, 2)
    run = train(small("flow-grpo", {"iterations": 1}), tmp_path / "run")
    assert trains(run)[0]["skipped_updates"] == 2
    base = load_file(tiny_world)
    for name, tensor in saved_tensors(run):
        file, parameter = name.split(": ")
        assert file != "optimizer.safetensors"  # it never took a step, so it has no state
        assert torch.equal(tensor, base[parameter]), name


def test_skipped_updates_are_counted_and_the_run_learns_on(infinite_losses, tiny_world, tmp_path):
    infinite_losses(2, 3, 5, 6)
    run = train(small("flow-grpo", {"iterations": 4}), tmp_path / "run")
    assert [line["skipped_updates"] for line in trains(run)] == [1, 2, 4, 4]
    assert [line["updates"] for line in trains(run)] == [2, 2, 2, 2]
    assert [line["grad_norm"] is None for line in trains(run)] == [
        True,
        True,
        True,
        False,
    ]  # JSON has no infinity


@pytest.mark.parametrize("updates", [(1, 2, 3), (4, 5, 6)])
def test_three_in_a_row_stop_the_run(updates, infinite_losses, tiny_world, tmp_path):
    infinite_losses(*updates)
    with pytest.raises(UserError, match=r"3 updates in a row had a gradient that is not finite; lower optim"):
        train(small("flow-grpo", {"iterations": 9}), tmp_path / "run")


def test_the_row_of_skipped_updates_goes_on_after_an_interruption(infinite_losses, tiny_world, tmp_path):
    infinite_losses(2)
    run = train(small("flow-grpo", {"iterations": 1}), tmp_path / "run")
    assert saved_state(run)["skipped_in_a_row"] == 1
    infinite_losses(1, 2)
    with pytest.raises(UserError, match="3 updates in a row"):
        resume(run.path, load_run(run.path, ["iterations=2"]).recipe)
    assert iterations_saved(run) == [1]
