"""Whole runs over real families, from a saved folder."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.training.loop import train
from thalweg.training.recipe import load_recipe
from training.small_runs import metrics_of

CHEAP = {
    "iterations": 1,
    "data.prompts_per_iteration": 2,
    "rollout.group_size": 4,
    "rollout.steps": 3,
    "evaluation.num_prompts": 2,
    "evaluation.diversity_prompts": 1,
    "evaluation.diversity_group": 2,
    "evaluation.steps": 2,
}


@pytest.fixture
def settings_of(tiny_folder, tmp_path):
    """Overrides that put a tiny family in the place of a recipe's model."""

    def make(name):
        from models.diffusers.stock import model_of

        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red square\ntwo blue circles\na green line\n")
        model = model_of(name).model_dump(mode="json", exclude={"path"})
        overrides = {"model": str(tiny_folder(name))}
        overrides |= {f"model.{key}": value for key, value in model.items() if value is not None}
        return overrides | {"data.prompts": str(prompts), "evaluation.prompts": str(prompts)} | CHEAP

    return make


@pytest.mark.parametrize("recipe", ["flow-grpo", "diffusion-nft"])
@pytest.mark.parametrize(
    ("name", "reward"),
    [("sd3", "brightness"), ("flux", "jpeg_size"), ("qwen_image", "brightness"), ("wan", "brightness")],
)
def test_an_iteration_moves_the_adapters(recipe, name, reward, settings_of, tmp_path):
    loaded = load_recipe(recipe, settings_of(name) | {"rewards": [reward], "run.save_every": 1})
    run = train(loaded, tmp_path / "run")
    line = next(m for m in metrics_of(run) if m["event"] == "train")
    assert line["grad_norm"] > 0
    # The log-prob of a stored step, computed again with gradients in batches of the same shape.
    assert line.get("ratio_deviation", 0.0) == 0.0
    assert torch.isfinite(torch.tensor(line["reward"]))


def test_what_a_real_model_lacks_is_listed_at_once():
    with pytest.raises(UserError) as raised:
        load_recipe("mix-grpo", ["model=somewhere"])
    lines = str(raised.value).splitlines()
    assert lines[0] == "mix-grpo: 3 problems"
    assert [line.split("=")[0].split(":")[0].strip() for line in lines[1:]] == [
        "data.prompts",
        "evaluation.prompts",
        "rewards",
    ]
