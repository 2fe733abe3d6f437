"""Sharded or whole, on one process or two: the same run. The processes are forks."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.training.folder.saved import load_run
from thalweg.training.loop import resume, train
from thalweg.training.recipe.load import load_recipe
from training.distribution.test_processes import (
    PROPORTIONAL,
    assert_close_runs,
    assert_same_movement,
    one_group_without_variance,
)
from training.several_processes import on_processes
from training.small_runs import saved_tensors, small, trains

__all__ = ["one_group_without_variance"]

FSDP = {"parallel.weights": "fsdp"}
FEW = {"optim.micro_batch": 2, "rollout.micro_batch": 4, "iterations": 3, **PROPORTIONAL}
ROUTE = {"objective.route.recompute": False}
SLOW = {
    "flow-grpo": {},
    "tree-grpo": {},
    "gcpo": {},
    "sol-rl": {},
    "draft": ROUTE,
    "adjoint-matching": {},
    "dmd": {"objective.recompute": False},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("diffusion-nft", {}),
        ("flow-grpo", {"model.lora.rank": 4, "optim.max_grad_norm": 0.01}),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW.items()),
    ],
)
def test_a_sharded_run_is_the_run_of_one_process(name, changes, tiny_world, tmp_path):
    train(small(name, FEW | changes), tmp_path / "one")
    on_processes(2, lambda: train(small(name, FEW | changes | FSDP), tmp_path / "two"))
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    if "model.lora.rank" not in changes:
        assert_same_movement(tmp_path / "one", tmp_path / "two", tiny_world)
    assert [line["processes"] for line in trains(tmp_path / "two")] == [2, 2, 2]


@pytest.mark.parametrize(
    "name", ["flow-grpo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gcpo", "tree-grpo"))]
)
def test_processes_with_different_work_make_the_same_passes_and_count_those_they_add(
    name, one_group_without_variance, tiny_world, tmp_path
):
    # One process has no rows to train on, and fewer images to evaluate than the other.
    changes = FEW | one_group_without_variance | {"evaluation.num_prompts": 1}
    train(small(name, changes), tmp_path / "one")
    on_processes(2, lambda: train(small(name, changes | FSDP), tmp_path / "two"))
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert_same_movement(tmp_path / "one", tmp_path / "two", tiny_world)
    assert all(line["padded_passes"] > 0 for line in trains(tmp_path / "two"))
    assert all(line["padded_passes"] == 0 for line in trains(tmp_path / "one"))


def test_a_run_goes_on_with_other_processes_and_other_shards(tiny_world, tmp_path):
    recipe = small("diffusion-nft", {"run.save_every": 1, "iterations": 1, **PROPORTIONAL, **FSDP})
    on_processes(2, lambda: train(recipe, tmp_path / "run"))
    resume(tmp_path / "run", load_run(tmp_path / "run", ["iterations=2"]).recipe)
    whole = load_run(tmp_path / "run", ["iterations=3", "parallel.weights=replicated"]).recipe
    on_processes(2, lambda: resume(tmp_path / "run", whole))
    shards = load_run(tmp_path / "run", ["iterations=4", "parallel.weights=fsdp"]).recipe
    on_processes(2, lambda: resume(tmp_path / "run", shards))
    once = train(small("diffusion-nft", {"iterations": 4, **PROPORTIONAL}), tmp_path / "once")
    assert [line["processes"] for line in trains(tmp_path / "run")] == [2, 1, 2, 2]
    assert_close_runs(tmp_path / "run", once)
    assert_same_movement(tmp_path / "run", once, tiny_world)
    found, expected = (
        torch.cat([t.flatten() for n, t in saved_tensors(run) if n.startswith("optimizer") and t.ndim])
        for run in (tmp_path / "run", once)
    )
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_a_sharded_run_writes_the_tensors_that_a_whole_one_does(tiny_world, tmp_path):
    changes = {"iterations": 1, **PROPORTIONAL}
    train(small("diffusion-nft", changes), tmp_path / "one")
    on_processes(2, lambda: train(small("diffusion-nft", changes | FSDP), tmp_path / "two"))
    one, two = ({name: t.shape for name, t in saved_tensors(tmp_path / run)} for run in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("draft", [], "objective.route.recompute: computes whole passes again"),
        ("dmd", ["objective.recompute=true"], "objective.recompute: computes whole passes again"),
        ("e2po", [], "rollout.perturbation: reads the network's embeddings outside its passes"),
        ("flow-grpo", ["model.gradient_checkpointing=true"], "model.gradient_checkpointing: the miniature"),
    ],
)
def test_what_shards_cannot_do_is_refused_when_the_recipe_is_read(name, overrides, words):
    load_recipe(name, overrides)
    with pytest.raises(UserError, match=words):
        load_recipe(name, [*overrides, "parallel.weights=fsdp"])
