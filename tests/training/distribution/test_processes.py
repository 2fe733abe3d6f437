"""One process or several: the same run. The processes are forks; `torchrun` starts those of one test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.objectives.contract import PathwiseContract
from thalweg.training.folder.saved import load_run
from thalweg.training.loop import resume, train
from thalweg.training.recipe.load import load_recipe, recipe_names
from training.several_processes import on_processes
from training.small_runs import CHEAP, metrics_of, reproducible, saved_tensors, small, trains

# Where the process that writes stands; everything else must not depend on how many there are.
OF_PROCESSES = {"processes", "samples_local", "padded_passes"}
# Adam's first steps are signs, which rounding turns where a gradient is nearly 0. These follow its size.
QUICK = [
    "dense-grpo",
    "diffusion-nft",
    "euphonium",
    "flow-grpo",
    "gcpo",
    "op-grpo",
    "otca",
    "sol-rl",
    "tree-grpo",
]
RECIPES = QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in recipe_names() if name not in QUICK]
PROPORTIONAL = {"optim.epsilon": 1.0, "optim.learning_rate": 1e-3}


def assert_close_runs(a, b, tolerance: float = 1e-5) -> None:
    """The same metrics and weights to the tolerance, counters exactly.

    Diversity and monitors see images in steps of 1/255, where a rounding may tip a pixel.
    """
    for one, other in zip(reproducible(a), reproducible(b), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - OF_PROCESSES:
            if isinstance(one[name], float):
                room = 1e-3 if name.startswith(("diversity", "monitor/")) else tolerance
                assert one[name] == pytest.approx(other[name], abs=room, rel=1e-3), name
            else:
                assert one[name] == other[name], name
    for (name, x), (_, y) in zip(saved_tensors(a), saved_tensors(b), strict=True):
        if name.startswith("weights."):
            assert_close(x, y, atol=tolerance, rtol=0, msg=name)


def assert_same_movement(a, b, base) -> None:
    """The way that training went from the base, as far as its file has the weights, differs by a few percent
    of its length at most.

    A random network is rough: roundings of 1e-7 in the samples can change a gradient by 1 %.
    """
    start = load_file(base)

    def movement(run):
        trained = {n.split(": ")[1]: x for n, x in saved_tensors(run) if "policy" in n}
        return torch.cat([(x - start[n]).flatten() for n, x in trained.items() if n in start])

    moved, other = movement(a), movement(b)
    assert (moved - other).norm() < 0.05 * moved.norm()


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_train_as_one_does(name, tiny_world, tmp_path):
    # Fewer than a sample's rows: sweeps are then as many on one process as on two.
    recipe = small(name, {"optim.micro_batch": 2, "rollout.micro_batch": 4, **PROPORTIONAL})
    train(recipe, tmp_path / "one")
    on_processes(2, lambda: train(recipe, tmp_path / "two"))
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert_same_movement(tmp_path / "one", tmp_path / "two", tiny_world)
    for line in trains(tmp_path / "two"):
        assert line["processes"] == 2
        assert line["samples_local"] == line["samples"] / 2


def test_two_processes_noise_samples_into_the_same_states_of_their_paths_as_one(tiny_world, tmp_path):
    on_path = {"objective.noise": "path", "objective.sigmas": {"kind": "grid", "num_sigmas": 2}}
    recipe = small("elbo-epg", {"optim.micro_batch": 2, "rollout.micro_batch": 4, **PROPORTIONAL, **on_path})
    train(recipe, tmp_path / "one")
    on_processes(2, lambda: train(recipe, tmp_path / "two"))
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert_same_movement(tmp_path / "one", tmp_path / "two", tiny_world)


def test_each_process_draws_its_own_share_of_the_very_same_samples(tiny_world, tmp_path):
    def keep(images, prompts):
        folder = tmp_path / os.environ.get("WORLD_SIZE", "1")
        folder.mkdir(exist_ok=True)
        rank = os.environ.get("RANK", "0")
        torch.save(images, folder / f"{rank}-{len(list(folder.glob(f'{rank}-*'))):03d}.pt")
        return images.flatten(1).mean(1)

    recipe = small("flow-grpo", {"rewards": [keep]})
    train(recipe, tmp_path / "a")
    on_processes(2, lambda: train(recipe, tmp_path / "b"))
    seen = {
        n: [torch.load(f) for f in sorted((tmp_path / n[0]).glob(f"{n[2]}-*"))] for n in ("1/0", "2/0", "2/1")
    }
    assert len(seen["1/0"]) == len(seen["2/0"]) == len(seen["2/1"]) == 4  # two evaluations, two iterations
    for whole, first, second in zip(seen["1/0"], seen["2/0"], seen["2/1"], strict=True):
        assert len(first) == len(second) == len(whole) / 2
        assert not torch.isclose(first, second).all()
        assert_close(torch.cat([first, second]), whole, atol=1e-5, rtol=0)


def reads_reward_gradient(name: str) -> bool:
    objective = load_recipe(name).objective
    return isinstance(objective, PathwiseContract) and objective.reads_reward


@pytest.fixture
def one_group_without_variance(tmp_path):
    """Prompts and a reward for which exactly one of an iteration's two groups teaches something."""

    def brightness_of_circles(images, prompts):
        asked = torch.tensor([p.text == "a blue circle" for p in prompts], dtype=torch.bool)
        return torch.where(asked, images.flatten(1).mean(1), 0.5)

    file = tmp_path / "prompts.txt"
    file.write_text("a red square\na blue circle\n")
    return {"data.prompts": str(file), "rewards": [brightness_of_circles]}


@pytest.mark.parametrize("name", ["flow-grpo", "gcpo", "op-grpo", "diffusion-nft"])
def test_a_process_whose_groups_teach_nothing_neither_hangs_nor_changes_the_run(
    name, one_group_without_variance, tiny_world, tmp_path
):
    recipe = small(name, {"optim.micro_batch": 2, **one_group_without_variance, **PROPORTIONAL})
    train(recipe, tmp_path / "one")
    on_processes(2, lambda: train(recipe, tmp_path / "two"))
    assert [line["zero_variance_fraction"] for line in trains(tmp_path / "one")] == [0.5, 0.5]
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert_same_movement(tmp_path / "one", tmp_path / "two", tiny_world)


def test_fewer_evaluation_images_than_processes_do_not_hang(tiny_world, tmp_path):
    # One image to judge and two to compare, on three processes.
    few = {"evaluation.num_prompts": 1, "iterations": 1, "rollout.group_size": 3}
    recipe = small("flow-grpo", few | PROPORTIONAL)
    train(recipe, tmp_path / "one")
    on_processes(3, lambda: train(recipe, tmp_path / "three"))
    assert_close_runs(tmp_path / "one", tmp_path / "three")


def test_one_process_resumes_what_two_have_saved(tiny_world, tmp_path):
    recipe = small("diffusion-nft", {"run.save_every": 1, **PROPORTIONAL})
    on_processes(2, lambda: train(recipe, tmp_path / "run"))
    resume(tmp_path / "run", load_run(tmp_path / "run", ["iterations=3"]).recipe)
    whole = train(small("diffusion-nft", {"iterations": 3, **PROPORTIONAL}), tmp_path / "whole")
    assert [line["processes"] for line in trains(tmp_path / "run")] == [2, 2, 1]
    assert_close_runs(tmp_path / "run", whole)


def test_roots_that_do_not_split_are_refused_on_every_process_before_anything_is_written(
    tiny_world, tmp_path
):
    recipe = small("mix-grpo", {"data.prompts_per_iteration": 3})  # one initial noise a prompt

    def refused():
        with pytest.raises(
            UserError, match="do not split over 2 processes: their product must be a multiple of 2"
        ):
            train(recipe, tmp_path / "run")

    on_processes(2, refused)
    assert not (tmp_path / "run").exists()


def test_the_micro_batch_changes_rewards_by_rounding_only(tiny_world, tmp_path):
    def rewards(size):
        batches = {f"{section}.micro_batch": size for section in ("rollout", "optim", "evaluation")}
        lines = trains(train(small("flow-grpo", batches), tmp_path / str(size)))
        return [line[name] for line in lines for name in ("reward", "reward/brightness", "reward_std")]

    one, four, sixteen = (rewards(size) for size in (1, 4, 16))
    assert one == pytest.approx(four, abs=1e-4)
    assert sixteen == pytest.approx(four, abs=1e-4)


@pytest.mark.parametrize("name", ["flow-grpo", pytest.param("diffusion-nft", marks=pytest.mark.slow)])
def test_torchrun_starts_a_run_of_two_processes(name, tmp_path):
    overrides = {**CHEAP, **PROPORTIONAL, "rollout.group_size": 4, "rewards": ["scenes"]}
    whole = train(load_recipe(name, overrides), tmp_path / "one")
    said = trained_by_torchrun(name, overrides, tmp_path / "two")
    assert said.count("finished; report:") == 1  # the first process alone speaks
    assert metrics_of(tmp_path / "two")[1]["processes"] == 2
    assert_close_runs(whole, tmp_path / "two")


def trained_by_torchrun(name, overrides, out):
    """Train on two processes; what they say."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "thalweg", "train"]
    typed = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    done = subprocess.run(
        [sys.executable, "-m", *launch, name, *typed, "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
