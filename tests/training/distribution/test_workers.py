"""Runs whose samples are grown by workers of a Ray cluster of one machine, started by the run or for it.
Workers load the shipped world: a tiny one would be this process's alone.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.training.folder.saved import load_run
from thalweg.training.loop import resume, train
from thalweg.training.recipe.load import load_recipe
from training.distribution.test_processes import PROPORTIONAL, assert_close_runs, trained_by_torchrun
from training.ray_cluster import becomes_free, cluster
from training.small_runs import (
    CHEAP,
    assert_same_run,
    metrics_of,
    saved_tensors,
    small,
    train_until_killed,
    trains,
)

__all__ = ["cluster"]

TWO = {"parallel.workers.count": 2, "parallel.workers.cpus_per_worker": 0.5}


def test_a_missing_ray_is_one_line_and_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("thalweg.core.team.find_spec", lambda name: None)
    words = r"parallel\.workers: ray is not installed; pip install 'thalweg\[ray\]'"
    with pytest.raises(UserError, match=words):
        train(small("flow-grpo", TWO), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel.weights": "fsdp"}, "parallel.workers: each has the whole network, which parallel.weig"),
        ({"parallel.ulysses": 2}, "parallel.workers: each makes whole samples, which parallel.ulysses=2"),
        ({"model.device": "cuda"}, "parallel.workers.gpus_per_worker=0: model.device='cuda' is no worker's"),
        (
            {"model.device": "cuda:1", "parallel.workers.gpus_per_worker": 0.5},
            "model.device='cuda:1': a worker sees only the accelerators .* give 'cuda'",
        ),
        ({"parallel.workers.count": 0}, "parallel.workers.count"),
        ({"parallel.workers.kind": "dask"}, "parallel.workers.kind"),
    ],
)
def test_what_workers_cannot_do_is_refused_when_the_recipe_is_read(changes, words):
    load_recipe("flow-grpo", TWO)
    with pytest.raises(UserError, match=words):
        load_recipe("flow-grpo", TWO | changes)


def test_an_accelerator_that_ray_keeps_for_a_worker_is_not_refused():
    load_recipe("flow-grpo", TWO | {"model.device": "cuda", "parallel.workers.gpus_per_worker": 0.5})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "changes"),
    [
        ("flow-grpo", 2, {"model.lora.rank": 4}),
        ("diffusion-nft", 3, {}),  # grows under averaged weights
        ("sol-rl", 2, {}),  # looks first, under rounded weights
        ("euphonium", 2, {}),  # workers climb the gradient of a reward
        ("tree-grpo", 1, {}),
    ],
)
def test_a_run_with_workers_is_the_run_without(name, count, changes, cluster, tmp_path):
    common = {"iterations": 3, "rollout.micro_batch": 4, **PROPORTIONAL, **changes}
    train(small(name, common), tmp_path / "here")
    train(small(name, common | TWO | {"parallel.workers.count": count}), tmp_path / "there")
    assert_close_runs(tmp_path / "here", tmp_path / "there")  # passes exactly, ratio_deviation too
    assert len(trains(tmp_path / "there")) == 3
    assert becomes_free(cluster)
    assert cluster.is_initialized()  # not the run's to end


@pytest.mark.slow
def test_each_process_of_torchrun_has_workers_of_its_own(cluster, tmp_path):
    overrides = {**CHEAP, **PROPORTIONAL, "rollout.group_size": 4, "rewards": ["scenes"]}
    train(load_recipe("flow-grpo", overrides), tmp_path / "one")
    address = cluster.get_runtime_context().gcs_address
    there = {"parallel.workers": {"count": 1, "cpus_per_worker": 0.5, "address": address}}
    trained_by_torchrun("flow-grpo", overrides | there, tmp_path / "two")
    assert metrics_of(tmp_path / "two")[1]["processes"] == 2
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert becomes_free(cluster)


@pytest.mark.slow
def test_what_was_interrupted_goes_on_as_if_it_had_not_been_and_with_other_workers(cluster, tmp_path):
    recipe = small("diffusion-nft", TWO | PROPORTIONAL | {"iterations": 3, "run.save_every": 1})
    train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "run", 2)
    assert becomes_free(cluster)
    resume(tmp_path / "run", recipe)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    for changes in ("parallel.workers.count=1", "parallel.workers=null"):
        iteration = metrics_of(tmp_path / "run")[-1]["iteration"] + 1
        again = load_run(tmp_path / "run", [f"iterations={iteration}", changes]).recipe
        resume(tmp_path / "run", again)
    train(small("diffusion-nft", PROPORTIONAL | {"iterations": 5}), tmp_path / "here")
    assert_close_runs_at_the_end(tmp_path / "here", tmp_path / "run")


def assert_close_runs_at_the_end(a, b):
    for one, other in zip(trains(a), trains(b), strict=True):
        assert one["evaluations"] == other["evaluations"]
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-5)
    for (name, x), (_, y) in zip(saved_tensors(a), saved_tensors(b), strict=True):
        if name.startswith("weights."):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_workers_without_room_and_workers_that_fail_are_one_line(cluster, tmp_path):
    crowd = {"parallel.workers.cpus_per_worker": 32, "parallel.workers.start_timeout": 2}
    words = "parallel.workers: Ray worker 1 of 2 gave no answer within 2 s; they need 64 CPUs and 0 GPUs"
    with pytest.raises(UserError, match=words):
        train(small("flow-grpo", TWO | crowd), tmp_path / "crowd")
    assert not (tmp_path / "crowd").exists()
    assert becomes_free(cluster)

    def end_workers(event, line):
        """As the machine does where memory runs out."""
        if event == "train":
            workers = [number for number, name in processes_below(os.getpid()).items() if "ray::_W" in name]
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker, signal.SIGKILL)

    with pytest.raises(UserError, match=r"^parallel.workers: Ray worker 1 of 2 died .*and resume the run$"):
        train(small("flow-grpo", TWO | {"run.save_every": 1}), tmp_path / "dead", end_workers)
    assert becomes_free(cluster)
    recipe = load_run(tmp_path / "dead", []).recipe
    assert resume(tmp_path / "dead", recipe).finished


def processes_below(parent: int) -> dict[int, str]:
    """The command of every process that it started, and that those started."""
    columns = ["ps", "-eo", "pid=,ppid=,args="]
    shown = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    every = [line.split(maxsplit=2) for line in shown.splitlines()]
    found, waiting = {}, [parent]
    while waiting:
        own = {int(line[0]): line[2] for line in every if int(line[1]) == waiting[0]}
        waiting = [*waiting[1:], *own]
        found |= own
    return found


@pytest.mark.slow
def test_two_ctrl_c_end_the_run_its_workers_and_its_cluster(tmp_path):
    pytest.importorskip("ray")
    typed = ["parallel.workers={kind: ray, count: 2, cpus_per_worker: 0.5}", "iterations=10000"]
    command = [sys.executable, "-m", "thalweg", "train", "flow-grpo", *typed, "--out", str(tmp_path / "run")]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        metrics, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
        while time.monotonic() < end and not (metrics.exists() and '"train"' in metrics.read_text()):
            assert run.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.5)
        started = processes_below(run.pid)
        assert sum("ray::_Worker" in command for command in started.values()) == 2
        for _ in range(2):
            run.send_signal(signal.SIGINT)
            time.sleep(0.3)
        run.wait(60)
    finally:
        run.kill()
    end = time.monotonic() + 30
    while time.monotonic() < end and any(os.path.exists(f"/proc/{number}") for number in started):
        time.sleep(0.5)
    assert not [name for number, name in started.items() if os.path.exists(f"/proc/{number}")]
