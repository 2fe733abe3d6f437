"""Sharded or whole, on one process or two: the same run."""

import pytest

from thalweg.training.loop import train
from training.several_processes import on_processes
from training.small_runs import small
from training.test_processes import PROPORTIONAL, assert_close_runs, assert_same_movement

FSDP = {"parallel.weights": "fsdp"}
QUICK = ["flow-grpo", "diffusion-nft", "tree-grpo", "draft", "dmd", "gcpo", "adjoint-matching"]


@pytest.mark.parametrize("name", QUICK)
def test_a_sharded_run_is_the_run_of_one_process(name, tiny_world, tmp_path):
    few = {"optim.micro_batch": 2, "rollout.micro_batch": 4, **PROPORTIONAL}
    train(small(name, few), tmp_path / "one")
    on_processes(2, lambda: train(small(name, few | FSDP), tmp_path / "two"))
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert_same_movement(tmp_path / "one", tmp_path / "two", tiny_world)
