"""Recipes of real models: everything about them that can be known without their weights."""

import json
from pathlib import Path

import pytest
import yaml

from thalweg.core.errors import UserError
from thalweg.models import DiffusersModel
from thalweg.training.recipe.load import check_recipe, find_recipe, full_size_names, load_recipe, recipe_names
from thalweg.training.recipe.variants import HUB, PIPELINES, folder_of

NAMES = full_size_names()
SECTIONS = ["model", "weights", "data", "rollout", "rewards", "credit", "selection", "objective", "optim"]


def test_every_family_that_was_promised_has_its_recipes():
    assert set(NAMES) >= {
        *(f"sd3.5-medium/{method}" for method in ("flow-grpo", "mix-grpo", "diffusion-nft")),
        "sd3.5-large/flow-grpo",
        *(f"{model}/{method}" for model in ("sd15", "sdxl") for method in ("flow-grpo", "mix-grpo")),
        *(f"{model}/diffusion-nft" for model in ("sd15", "sdxl")),
        *(f"flux1-dev/{method}" for method in ("flow-grpo", "mix-grpo", "dance-grpo", "gcpo")),
        "flux2-dev/flow-grpo",
        "flux2-klein/precise",
        "qwen-image/flow-grpo",
        "qwen-image/grpo-guard",
        "qwen-image-edit-plus/flow-grpo",
        "z-image/diffusion-nft",
        "sana/diffusion-nft",
        "wan2.1/flow-grpo",
        "wan2.1/flash-grpo",
        "wan2.2/otca",
        "hunyuanvideo-1.5/dance-grpo",
        "ltx-2/diffusion-nft",
        "ltx-2/omninft",
        "stable-audio-3/diffusion-nft",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_recipe_resolves_and_reads_back(name):
    recipe = load_recipe(name)
    assert recipe.name == name.replace("/", "-")
    assert isinstance(recipe.model, DiffusersModel)
    assert check_recipe(yaml.safe_load(recipe.to_yaml()), "text") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_it_is_complete_in_order_and_says_where_its_numbers_are_from(name):
    text = find_recipe(name).read_text(encoding="utf-8")
    written, head = yaml.safe_load(text), text.split("title:")[0]
    assert f"thalweg train {name}" in head and "Not run by us" in head
    assert list(written)[:4] == ["title", "paper", "iterations", "seed"]
    sections = [*SECTIONS, "evaluation", "run"]
    assert [key for key in written if key in sections] == [key for key in sections if key in written]
    folder, method = name.split("/")
    assert method in recipe_names(), "a variant of an embedded recipe"
    assert (
        yaml.safe_load(find_recipe(method).read_text())["objective"]["kind"] == written["objective"]["kind"]
    )
    assert HUB[written["model"]["path"]] == folder


def test_the_rewards_and_prompts_of_a_full_size_recipe_can_be_given():
    recipe = load_recipe("flux1-dev/mix-grpo", ["rewards=[pickscore]", "data.prompts=prompts.txt"])
    assert [reward.name for reward in recipe.rewards] == ["pickscore"]
    assert (recipe.data.prompts, recipe.evaluation.prompts) == ("prompts.txt", "data")


def saved(path: Path, class_name: str, layers: int = 24, **components: object) -> str:
    (path / "transformer").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": class_name, **components}))
    (path / "transformer" / "config.json").write_text(json.dumps({"num_layers": layers}))
    return str(path)


@pytest.mark.parametrize(("class_name", "folder"), PIPELINES.items())
def test_a_saved_pipeline_is_known_by_its_class(class_name, folder, tmp_path):
    assert folder_of(saved(tmp_path, class_name)) == folder


def test_sizes_and_stages_of_a_family_are_told_apart(tmp_path):
    two = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    assert folder_of(saved(tmp_path / "a", "WanPipeline", **two)) == "wan2.2"
    assert folder_of(saved(tmp_path / "b", "WanPipeline", transformer_2=[None, None])) == "wan2.1"
    assert folder_of(saved(tmp_path / "c", "StableDiffusion3Pipeline", 38)) == "sd3.5-large"
    assert folder_of(saved(tmp_path / "d", "AuraFlowPipeline")) is None
    assert folder_of(str(tmp_path)) is None and folder_of("no-one/nothing") is None


def test_a_method_takes_its_variant_for_the_model_and_keeps_the_variants_settings(tmp_path):
    path = saved(tmp_path, "FluxPipeline")
    for given in (path, "black-forest-labs/FLUX.1-dev"):
        recipe = load_recipe("mix-grpo", [f"model={given}", "model.height=512"])
        assert (recipe.name, recipe.rollout.steps) == ("flux1-dev-mix-grpo", 25)
        model = recipe.model
        assert isinstance(model, DiffusersModel)
        assert (model.path, model.height, model.width, model.guidance_scale) == (given, 512, 720, 3.5)
    own = load_recipe("flux1-dev/mix-grpo", [f"model={path}"])
    assert own.model == load_recipe("mix-grpo", {"model": path}).model


def test_a_method_without_a_variant_says_in_one_error_what_must_be_given(tmp_path):
    with pytest.raises(UserError) as refused:
        load_recipe("mix-grpo", [f"model={saved(tmp_path, 'AuraFlowPipeline')}"])
    for key in ("data.prompts", "evaluation.prompts", "rewards"):
        assert f"{key}" in str(refused.value)


def test_an_unknown_variant_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'flux1-dev/mix-grpo'"):
        load_recipe("flux1-dev/mixgrpo")
