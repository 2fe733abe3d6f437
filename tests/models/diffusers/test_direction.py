"""A whole training of real families at toy size moves what they make towards the reward."""

import pytest

from models.diffusers.builders import TINY
from models.diffusers.stock import model_of
from thalweg.training.loop import train
from thalweg.training.recipe import find_recipe, load_recipe
from training.small_runs import metrics_of

TRAINED = {
    "iterations": 15,
    "data.prompts_per_iteration": 2,
    "rollout.group_size": 8,
    "rollout.steps": 3,
    "rollout.micro_batch": 16,
    "rollout.weights": "policy",
    "weights.old": {"update": {"kind": "copy"}},
    "weights.evaluation": {"update": {"kind": "copy"}},
    "optim.learning_rate": 0.01,
    "optim.micro_batch": 16,
    "evaluation.every": 15,
    "evaluation.num_prompts": 2,
    "evaluation.samples_per_prompt": 4,
    "evaluation.diversity_prompts": 0,
    "evaluation.steps": 3,
    "evaluation.weights": "policy",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reward"),
    [
        ("sd3", "brightness"),
        ("stable_audio", "loudness"),
        ("ltx2", "loudness"),
    ],
)
def test_a_training_moves_what_is_made_towards_the_reward(name, reward, tiny_folder, tmp_path):
    """On the same noises, held out from training; and towards the opposite where the reward counts
    negative.
    """
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\ntwo blue circles\n")
    model = model_of(name).model_dump(mode="json", exclude={"path", "call"})
    model["call"] = dict(TINY[name].call)
    settings = {
        "model": str(tiny_folder(name)),
        **{f"model.{k}": v for k, v in model.items() if v is not None},
    }
    settings |= {"data.prompts": str(prompts), "evaluation.prompts": str(prompts)} | TRAINED
    changes = {}
    for weight in (1.0, -1.0):
        recipe = load_recipe(
            find_recipe("diffusion-nft"), settings | {"rewards": [{"kind": reward, "weight": weight}]}
        )
        evals = [m for m in metrics_of(train(recipe, tmp_path / f"run{weight}")) if m["event"] == "eval"]
        assert [m["iteration"] for m in evals] == [0, 15]
        changes[weight] = evals[1][f"reward/{reward}"] - evals[0][f"reward/{reward}"]
    assert changes[1.0] > changes[-1.0]
