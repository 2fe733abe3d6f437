"""A whole training of real families at toy size moves what they make towards the reward."""

from pathlib import Path

import pytest
from torch import Tensor

from models.diffusers.builders import TINY
from models.diffusers.stock import PROMPTS, model_of
from thalweg.evaluation.sampling import sample_images
from thalweg.rewards import score
from thalweg.training.folder.saved import load_run
from thalweg.training.loop import train
from thalweg.training.recipe.load import find_recipe, load_recipe

TRAINED = {
    "iterations": 15,
    "data.prompts_per_iteration": 2,
    "rollout.group_size": 8,
    "rollout.steps": 3,
    "rollout.micro_batch": 16,
    "optim.learning_rate": 0.01,
    "optim.micro_batch": 16,
    "evaluation.every": 0,
    "evaluation.num_prompts": 1,
    "evaluation.diversity_prompts": 0,
    "evaluation.steps": 3,
}
RECIPES = {
    "diffusion-nft": {
        "rollout.weights": "policy",
        "weights.old": {"update": {"kind": "copy"}},
        "weights.evaluation": {"update": {"kind": "copy"}},
    },
    "flow-grpo": {
        "iterations": 20,
        "rollout.group_size": 16,
        "rollout.micro_batch": 32,
        "optim.learning_rate": 0.05,
        "optim.micro_batch": 32,
        # Adapters on the blocks of the tiny Wan hardly reach the mean of its frames, so they are larger.
        "model.lora": {"rank": 8, "alpha": 32},
    },
}
NOISES = 8
"""Of each prompt, held out from training and the same for both signs."""
MARGIN = 4
"""Standard errors of the mean gain over the evaluation samples."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reward", "recipe"),
    [
        pytest.param("sd3", "brightness", "diffusion-nft", id="text_to_image-sd3"),
        pytest.param("flux", "brightness", "diffusion-nft", id="text_to_image-flux"),
        pytest.param("kontext", "brightness", "diffusion-nft", id="editing-kontext"),
        pytest.param("wan", "brightness", "flow-grpo", id="video-wan"),
        pytest.param("stable_audio", "loudness", "diffusion-nft", id="audio-stable_audio"),
        pytest.param("ltx2", "loudness", "diffusion-nft", id="audio_video-ltx2"),
    ],
)
def test_a_training_moves_what_is_made_towards_the_reward(name, reward, recipe, tiny_folder, tmp_path):
    """And towards the opposite where the reward counts negative: sample by sample, from the same noises."""
    settings = {"model": str(tiny_folder(name))} | settings_of(name, tmp_path) | TRAINED | RECIPES[recipe]
    after = {}
    for weight in (1.0, -1.0):
        rewards = {"rewards": [{"kind": reward, "weight": weight}]}
        run = train(load_recipe(find_recipe(recipe), settings | rewards), tmp_path / f"run{weight}")
        after[weight] = scores_of(run.path)
    gain = after[1.0] - after[-1.0]
    assert gain.mean() > MARGIN * gain.std() / len(gain) ** 0.5


def settings_of(name: str, folder: Path) -> dict[str, object]:
    """The tiny family's numbers and its prompts; a condition image is the path of a file."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"{prompt.text}\n" for prompt in PROMPTS))
    call = dict(TINY[name].call)
    if "image" in call:
        call["image"].save(folder / "image.png")
        call["image"] = str(folder / "image.png")
    model = model_of(name, call=call).model_dump(mode="json", exclude={"path"})
    return {f"model.{key}": value for key, value in model.items() if value is not None} | {
        "data.prompts": str(prompts),
        "evaluation.prompts": str(prompts),
    }


def scores_of(run: Path) -> Tensor:
    """The reward of every evaluation sample of the trained policy, without its weight."""
    saved = load_run(run)
    evaluation = saved.recipe.evaluation.model_copy(update={"weights": "policy"})
    made = sample_images(saved.policy(), PROMPTS, NOISES, evaluation)
    (values,) = score(saved.recipe.rewards, made, [p for p in PROMPTS for _ in range(NOISES)]).values()
    return values.double()
