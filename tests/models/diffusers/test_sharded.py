"""Real families whose networks live in shards on two processes."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from models.diffusers.test_training import settings_of
from thalweg.training.loop import train
from thalweg.training.recipe.load import find_recipe, load_recipe
from training.several_processes import on_processes
from training.small_runs import complete, trains

__all__ = ["settings_of"]

# Steps follow the size of the gradient; adapters move far enough to be compared.
PROPORTIONAL = {"optim.epsilon": 1.0, "optim.learning_rate": 1.0, "optim.micro_batch": 2}


def policy_of(run, iteration):
    file = complete(run / "checkpoints")[iteration] / "weights.policy.safetensors"
    return torch.cat([t.flatten().double() for t in load_file(file).values()])


@pytest.mark.parametrize(
    ("name", "lora", "kept"),
    [
        ("sd3", True, ["fsdp"]),
        pytest.param("wan_two_networks", True, ["fsdp"], marks=pytest.mark.slow),
        pytest.param("sd3", True, ["replicated"], marks=pytest.mark.slow),
        pytest.param("sd3", False, ["fsdp", "replicated"], marks=pytest.mark.slow),
        pytest.param("wan_two_networks", False, ["fsdp", "replicated"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_move_as_one_does_though_noise_levels_differ(name, lora, kept, settings_of, tmp_path):
    settings = settings_of(name) | PROPORTIONAL | {"rewards": ["brightness"], "iterations": 3}
    settings |= {"run.save_every": 1, "run.keep_last": 3, "evaluation.diversity_prompts": 0}
    settings |= {"evaluation.num_prompts": 1, "rollout.steps": 2}
    if not lora:
        settings = {key: value for key, value in settings.items() if not key.startswith("model.lora")}
        settings |= {"model.lora": None, "model.precision": "float32", "optim.learning_rate": 0.01}

    def recipe(weights):
        return load_recipe(find_recipe("diffusion-nft"), settings | {"parallel.weights": weights})

    train(recipe("replicated"), tmp_path / "one")
    for weights in kept:
        on_processes(2, partial(train, recipe(weights), tmp_path / weights), timeout=60)
    for weights in kept:
        run = tmp_path / weights
        for line, alone in zip(trains(run), trains(tmp_path / "one"), strict=True):
            assert line["loss"] == pytest.approx(alone["loss"], abs=1e-5)
            assert line["evaluations"] == alone["evaluations"]
        moved, expected = (policy_of(r, 2) - policy_of(r, 0) for r in (run, tmp_path / "one"))
        assert (moved - expected).abs().max() < 1e-5
        assert (moved - expected).norm() < 0.01 * expected.norm()
        if weights == "fsdp":
            padded = [line["padded_passes"] for line in trains(run)]
            assert (max(padded) > 0) == (name == "wan_two_networks")  # whose network depends on the level


@pytest.mark.slow
def test_blocks_in_bfloat16_are_computed_again_without_a_difference(settings_of, tmp_path):
    settings = settings_of("wan_two_networks") | PROPORTIONAL | {"rewards": ["brightness"], "iterations": 2}
    settings |= {"evaluation.diversity_prompts": 0, "rollout.steps": 2}
    settings |= {"model.precision": "bfloat16", "model.gradient_checkpointing": True}

    def recipe(weights):
        return load_recipe(find_recipe("diffusion-nft"), settings | {"parallel.weights": weights})

    train(recipe("replicated"), tmp_path / "one")
    on_processes(2, lambda: train(recipe("fsdp"), tmp_path / "two"))
    for line, alone in zip(trains(tmp_path / "two"), trains(tmp_path / "one"), strict=True):
        assert line["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert line["padded_passes"] > 0
