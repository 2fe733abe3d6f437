import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thalweg.training.folder.saved import load_run
from thalweg.training.loop import resume, train
from training.small_runs import (
    Killed,
    assert_same_run,
    iterations_saved,
    kill_at,
    metrics_of,
    small,
    train_until_killed,
)

EVERY_SECOND = {"run.save_every": 2, "evaluation.every": 2}
# What a recipe keeps or changes over its iterations acts here after the checkpoint.
RECIPES = {
    "flow-grpo": {},
    "mix-grpo": {"rollout.plan.iterations_per_position": 2},
    "tree-grpo": {},
    "op-grpo": {"replay.fraction": 1.0},  # the buffer is a part of the checkpoint
    "dense-grpo": {},
    "step-grpo": {},
    "sol-rl": {},
    "euphonium": {},
    "diffusion-nft": {},
    "v-grpo": {},  # an average that moves once an iteration of two updates
}


def resumed(path, overrides=()):
    return resume(path, load_run(path, overrides).recipe)


@pytest.mark.parametrize(("name", "overrides"), RECIPES.items(), ids=RECIPES)
def test_a_run_killed_after_a_checkpoint_and_resumed_equals_the_uninterrupted_one(
    name, overrides, tiny_world, tmp_path
):
    recipe = small(name, {"iterations": 4, **EVERY_SECOND, **overrides})
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=3)
    assert [line["iteration"] for line in metrics_of(tmp_path / "killed")] == [0, 1, 2, 2, 3]
    assert iterations_saved(tmp_path / "killed") == [2]
    again = resumed(tmp_path / "killed")
    assert again.finished
    assert_same_run(again, whole)


def test_iterations_take_the_next_prompts_and_noise_of_their_own(tiny_world, tmp_path):
    seen = []

    def keep(images, prompts):
        seen.append((images.clone(), {p.text for p in prompts}))
        return images.flatten(1).mean(1)

    file = tmp_path / "prompts.txt"
    words = ["a red square", "a blue circle", "a black cross", "a green triangle"]
    file.write_text("\n".join(words))
    still = {"optim.learning_rate": 1e-12, "iterations": 4, "data.prompts": str(file)}
    train(small("flow-grpo", {"rewards": [keep], **still}), tmp_path / "run")
    (first, a), (second, b), (third, c), (fourth, d) = seen[1:-1]  # between the two evaluations
    assert a | b == c | d == set(words)
    for i, one in enumerate((first, second, third, fourth)):
        for other in (first, second, third, fourth)[i + 1 :]:
            assert not torch.isclose(one, other, atol=1e-3).flatten(1).all(1).any()


def test_a_run_is_resumed_as_often_as_it_is_killed(tiny_world, tmp_path):
    # Momentum, the average, the warm-up and the order of prompts all reach over both interruptions.
    recipe = small(
        "diffusion-nft", {"iterations": 6, "run.save_every": 2, "optim.warmup_updates": 5, "seed": 3}
    )
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=3)
    with pytest.raises(Killed):
        resume(tmp_path / "killed", recipe, kill_at(5))
    assert iterations_saved(tmp_path / "killed") == [2, 4]
    assert_same_run(resumed(tmp_path / "killed"), whole)


def test_resuming_with_more_iterations_extends_the_run(tiny_world, tmp_path):
    every = {"run.save_every": 1, "evaluation.every": 1}
    whole = train(small("flow-grpo", {"iterations": 4, **every}), tmp_path / "whole")
    train(small("flow-grpo", {"iterations": 2, **every}), tmp_path / "short")
    longer = resumed(tmp_path / "short", ["iterations=4"])
    assert longer.iteration == 4
    assert_same_run(longer, whole)
    assert load_run(tmp_path / "short").recipe.iterations == 4


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny_world, tmp_path):
    recipe = small("flow-grpo", {"iterations": 3, "run.save_every": 10})
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=2)
    assert iterations_saved(tmp_path / "killed") == []
    assert_same_run(resumed(tmp_path / "killed"), whole)


def test_a_finished_run_stays_as_it_is_when_resumed(tiny_world, tmp_path):
    recipe = small("flow-grpo")
    run = train(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert resumed(run.path).finished
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("rest", ['{"event": "train", "iterat', '{"event": "train", "iteration": 2, "x": 1.'])
def test_a_half_written_line_of_metrics_is_dropped(rest, tiny_world, tmp_path):
    recipe = small("flow-grpo", {"iterations": 2, "run.save_every": 1})
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=2)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert_same_run(resumed(tmp_path / "killed"), whole)


def test_what_an_interrupted_save_left_behind_is_ignored_and_removed(tiny_world, tmp_path):
    recipe = small("flow-grpo", {"iterations": 3, "run.save_every": 1})
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=3)
    checkpoints = tmp_path / "killed" / "checkpoints"
    shutil.copytree(checkpoints / "00000002", checkpoints / ".partial-1-00000003")
    (checkpoints / ".partial-1-00000003" / "state.json").unlink()
    assert_same_run(resumed(tmp_path / "killed"), whole)
    assert not list(checkpoints.glob(".partial-*"))


def test_a_run_started_from_weights_resumes_after_those_are_gone(tiny_world, tmp_path):
    first = train(small("flow-grpo"), tmp_path / "first")
    recipe = small("mix-grpo", {"iterations": 3, "init": str(first.path), "run.save_every": 2})
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=3)
    shutil.rmtree(first.path)
    assert_same_run(resumed(tmp_path / "killed"), whole)


@pytest.mark.parametrize("as_what", ["run", "checkpoint", "file"])
def test_init_starts_from_the_weights_of_a_run_a_checkpoint_or_a_file(as_what, tiny_world, tmp_path):
    first = train(small("flow-grpo", {"optim.learning_rate": 0.01}), tmp_path / "first")
    folder = first.path / "checkpoints" / "00000002"
    file = folder / "weights.policy.safetensors"
    source = {"run": first.path, "checkpoint": folder, "file": file}[as_what]
    # The frozen reference of the second run is what it started from.
    second = train(small("flow-grpo", {"init": str(source)}), tmp_path / "second")
    reference = load_file(second.path / "checkpoints" / "00000002" / "weights.reference.safetensors")
    start = load_file(file)
    assert reference.keys() == start.keys()
    assert all(torch.equal(reference[name], start[name]) for name in start)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({"run.keep_last": 2, "run.keep_best": False}, [5, 6]),
        ({"run.keep_last": 1, "run.keep_best": False}, [6]),
        # A random network draws no scene, so its accuracy is 0 for ever: the first evaluation stays the best.
        ({"run.keep_last": 2, "evaluation.every": 2}, [2, 5, 6]),
        ({"run.keep_last": 1, "evaluation.every": 2, "run.save_every": 3}, [2, 6]),
    ],
)
def test_the_last_checkpoints_and_the_one_with_the_best_evaluation_stay(
    overrides, kept, tiny_world, tmp_path
):
    recipe = small("flow-grpo", {"iterations": 6, "run.save_every": 1, **overrides})
    run = train(recipe, tmp_path / "run")
    assert {line["accuracy"] for line in metrics_of(run) if line["event"] == "eval"} == {0.0}
    assert iterations_saved(run) == kept


def test_a_run_of_adapters_saves_and_resumes_adapters_alone(tiny_world, tmp_path):
    recipe = small("flow-grpo", {"iterations": 3, "model.lora": {"rank": 2}, "run.save_every": 2})
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=3)
    assert_same_run(resumed(tmp_path / "killed"), whole)
    stored = load_file(tmp_path / "killed" / "checkpoints" / "00000003" / "weights.policy.safetensors")
    assert stored and all("lora_" in name for name in stored)


def test_a_kill_while_a_sample_sheet_is_written_leaves_a_run_that_resumes(tiny_world, tmp_path, monkeypatch):
    recipe = small("flow-grpo")
    whole = train(recipe, tmp_path / "whole")
    replace = os.replace

    def die_at_the_last_sheet(source, target):
        if Path(target).name == "00000002.png":
            raise Killed
        return replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", die_at_the_last_sheet)
        train(recipe, tmp_path / "killed")
    assert_same_run(resumed(tmp_path / "killed"), whole)
