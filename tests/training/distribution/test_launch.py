"""Launches that cannot work are refused in a line, and processes that do are shown to be one run."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from cli.command import thalweg
from thalweg.core import processes as core
from thalweg.core.errors import UserError
from thalweg.core.processes import Processes, connect, disconnect
from thalweg.training.distribution.launch import examine_processes, require_alike
from training.several_processes import on_processes
from training.small_runs import small

__all__ = ["thalweg"]

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *core.LAUNCHERS)
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets a launcher's variables and no others."""

    def put(**values):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4 and no WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 and no WORLD_SIZE"),
        ({"RANK": "1"}, "RANK=1 and no WORLD_SIZE: each process would train alone"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: a number of processes"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no RANK: the processes cannot find each other"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 and no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "2", **ADDRESS}, "RANK=2, WORLD_SIZE=2: ranks go from 0 to 1"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(variables, words, environment, tmp_path, thalweg):
    environment(**variables)
    outcome = thalweg("train", "flow-grpo", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1 and words in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variables",
    [{}, {"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}, {"SLURM_STEP_NUM_TASKS": "1"}],
)
def test_one_process_that_shall_be_alone_is(variables, environment):
    environment(**variables)
    assert connect() == Processes(0, 1)


def test_a_process_whose_others_do_not_come_says_so(environment, monkeypatch):
    environment(WORLD_SIZE="2", RANK="1", **ADDRESS)  # nobody listens there
    monkeypatch.setattr(core, "MEETING", timedelta(seconds=1))
    with pytest.raises(UserError, match=r"did not meet at 127.0.0.1:1 within 1 s") as raised:
        connect()
    assert len(str(raised.value).splitlines()) == 1


def test_processes_with_another_recipe_are_refused_everywhere(tiny_world):
    def work():
        processes = connect()
        require_alike(processes, small("flow-grpo"))
        with pytest.raises(
            UserError, match=r"process 1 has recipe [0-9a-f]{12}, process 0 has [0-9a-f]{12}; "
        ):
            require_alike(processes, small("flow-grpo", {"seed": processes.rank}))
        disconnect(processes)

    on_processes(2, work)


def test_connected_processes_have_noise_in_common_and_data_of_their_own():
    def work():
        processes = connect()
        found = {f.what: f for f in examine_processes(processes)}
        assert all(f.ok for f in found.values()), found
        assert found["processes"].value.startswith("2 connected: 2 on ")
        assert found["data"].value == "each process has its own"
        assert found["adding gradients"].value.endswith("ms for 4 MiB")
        twins = {f.what: f for f in examine_processes(Twin(processes.rank, 2))}
        assert not twins["data"].ok
        disconnect(processes)

    on_processes(2, work)


class Twin(Processes):
    """Believes to be the first of all when it takes its share, as one of two unconnected trainings does."""

    def share(self, total: int) -> range:
        return range(total // self.count)


def test_doctor_finds_a_process_that_is_alone(environment, thalweg):
    environment()
    outcome = thalweg("doctor", "processes", "--json")
    assert outcome.code == 1
    (found,) = (row for row in json.loads(outcome.out) if row["what"] == "processes")
    assert found["value"] == "1, not connected to any other" and "torchrun" in found["advice"]
    refused = thalweg("doctor", "processes", "seed=1")
    assert refused.code == 2 and "doctor processes: 'seed=1' changes nothing there" in refused.err


@pytest.mark.slow
def test_doctor_under_torchrun_speaks_once_and_finds_two(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "thalweg", "doctor", "processes"],
        env={k: v for k, v in os.environ.items() if k not in VARIABLES}
        | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "COLUMNS": "200"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 connected: 2 on ") == 1
