"""Whole runs over real families, from a saved folder."""

import pytest
import torch
from PIL import Image

from cli.command import thalweg
from thalweg.core.errors import UserError
from thalweg.training.loop import train
from thalweg.training.recipe.load import find_recipe, load_recipe
from training.small_runs import metrics_of

__all__ = ["thalweg"]

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
    [
        ("sd3", "brightness"),
        ("flux", "jpeg_size"),
        ("qwen_image", "brightness"),
        ("wan", "brightness"),
        ("stable_audio", "loudness"),
        ("ltx2", "loudness"),
        *(
            pytest.param(name, reward, marks=pytest.mark.slow)
            for name, reward in (
                ("sana", "jpeg_size"),
                ("z_image", "brightness"),
                ("flux2", "brightness"),
                ("flux2_klein", "brightness"),
                ("chroma", "brightness"),
                ("wan_two_networks", "brightness"),
                ("longcat_audio", "loudness"),
                ("ace_step", "loudness"),
            )
        ),
    ],
)
def test_an_iteration_moves_the_adapters(recipe, name, reward, settings_of, tmp_path):
    settings = settings_of(name) | {"rewards": [reward]}
    if name.endswith(("audio", "step")):
        settings["evaluation.diversity_prompts"] = 0
    loaded = load_recipe(find_recipe(recipe), settings)  # by its file, which has no variants
    run = train(loaded, tmp_path / "run")
    line = next(m for m in metrics_of(run) if m["event"] == "train")
    assert line["grad_norm"] > 0
    assert line["ratio_deviation"] < 1e-5  # of a stored step, computed again with gradients
    assert torch.isfinite(torch.tensor(line["reward"]))


@pytest.mark.parametrize("recipe", ["flow-grpo", "mix-grpo", "diffusion-nft"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_pipelines_that_predict_noise_train_by_their_full_size_recipes(recipe, name, settings_of, tmp_path):
    small = {key: value for key, value in settings_of(name).items() if key != "rollout.steps"}
    few = {"rewards": ["brightness"], "rollout.steps": 5, "rollout.micro_batch": 8, "optim.micro_batch": 8}
    loaded = load_recipe(
        f"{name}/{recipe}",
        small | few | {"objective.sigmas.num_sigmas": 3} if "nft" in recipe else small | few,
    )
    assert loaded.rollout.schedule.kind == "variance_preserving"
    run = train(loaded, tmp_path / "run")
    line = next(m for m in metrics_of(run) if m["event"] == "train")
    assert line["grad_norm"] > 0
    assert line["ratio_deviation"] < 1e-6  # rows of an update stand at several levels, of the rollout at one


def test_a_stored_run_draws_videos_and_goes_on(settings_of, tmp_path, thalweg):
    overrides = settings_of("wan") | {"rewards": ["brightness"]}
    run = train(load_recipe("flow-grpo", overrides), tmp_path / "run")
    outcome = thalweg("sample", run.path, "a red square", "--count", 1, "--out", tmp_path / "videos")
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "videos" / "0000.gif") as video:
        assert video.size == (32, 32) and getattr(video, "n_frames", 1) > 1
    outcome = thalweg("export", run.path, "--out", tmp_path / "adapter")
    assert str(tmp_path / "adapter" / "pytorch_lora_weights.safetensors") in outcome.out.split()
    outcome = thalweg("resume", run.path, "iterations=2")
    assert outcome.code == 0, outcome.err
    assert [m["iteration"] for m in metrics_of(run) if m["event"] == "train"] == [1, 2]


def test_a_run_may_give_its_encoders_back_and_is_the_same_run(settings_of, tmp_path):
    runs = []
    for name, extra in {
        "kept": {},
        "released": {"model.release_encoders": True, "model.embedding_cache": str(tmp_path / "cache")},
    }.items():
        settings = settings_of("sd3") | {"rewards": ["brightness"]} | extra
        runs.append(metrics_of(train(load_recipe("flow-grpo", settings), tmp_path / name)))
    kept, released = (next(m for m in lines if m["event"] == "train") for lines in runs)
    assert released["reward"] == kept["reward"] and released["grad_norm"] == kept["grad_norm"]
    first = runs[1][0]
    assert first["event"] == "encoded" and first["prompts"] == 3 and first["memory/released_mb"] > 0
    streamed = settings_of("sd3") | {
        "model.release_encoders": True,
        "data.streaming": True,
        "rewards": ["brightness"],
    }
    with pytest.raises(UserError, match="release_encoders encodes all prompts at the start"):
        load_recipe("flow-grpo", streamed)


def test_adapters_of_another_network_are_refused(settings_of, tmp_path):
    run = train(load_recipe("flow-grpo", settings_of("sd3") | {"rewards": ["brightness"]}), tmp_path / "run")
    other = settings_of("flux") | {"rewards": ["brightness"], "init": str(run.path)}
    with pytest.raises(UserError, match="holds other parameters than this model"):
        train(load_recipe("flow-grpo", other), tmp_path / "other")


def test_rewards_that_the_model_cannot_be_judged_by_are_refused(settings_of, tmp_path):
    for name, reward, words in (
        ("stable_audio", "brightness", "judges images, and the model makes sound"),
        ("sd3", "loudness", "judges sound, and the model makes none"),
    ):
        loaded = load_recipe("flow-grpo", settings_of(name) | {"rewards": [reward]})
        with pytest.raises(UserError, match=words):
            train(loaded, tmp_path / name / "run")


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


CLIMBING = {
    "rewards": ["brightness"],
    "weights": {
        "reference": {"update": "frozen"},
        "evaluation": {"update": {"kind": "ema", "decay": 0.5, "per": "update"}},
    },
    "evaluation.steps": 3,
    "rollout.group_size": 2,
}


@pytest.mark.parametrize(
    ("recipe", "name", "overrides"),
    [
        ("refl", "sd3", {"objective.margin": 2.0, "objective.route.late_fraction": 0.5}),
        ("draft", "flux", {}),
        ("draft", "wan", {}),
        ("draft-lv", "z_image", {}),
        ("align-prop", "flux2_klein", {}),
        ("leap-align", "sd3", {}),
        ("rats", "sd3", {"weights.teacher": {"update": {"kind": "ema", "decay": 0.9, "per": "update"}}}),
        ("adjoint-matching", "flux", {"rollout.steps": 8, "objective.num_steps": 2}),
        ("srpo", "qwen_image", {"objective.relative": None}),
        ("adjoint-matching-ode", "sd3", {}),
        ("rsm-first-order", "sd15", {"objective.num_steps": 2}),
    ],
)
def test_a_real_family_climbs_a_reward_through_its_decoder(recipe, name, overrides, settings_of, tmp_path):
    run = train(load_recipe(recipe, settings_of(name) | CLIMBING | overrides), tmp_path / "run")
    (line,) = [line for line in metrics_of(run) if line["event"] == "train"]
    assert line["grad_norm"] > 0 and line["updates"] > 0


def test_a_tiny_family_gets_brighter_by_the_gradient_of_brightness(settings_of, tmp_path):
    overrides = {"iterations": 12, "optim.learning_rate": 3e-2, "evaluation.every": 12}
    overrides["objective.reference_weight"] = 0  # the recipe's is of log-odds, which are steeper
    run = train(load_recipe("draft", settings_of("sd3") | CLIMBING | overrides), tmp_path / "run")
    first, last = [line["reward"] for line in metrics_of(run) if line["event"] == "eval"]
    assert last > first + 0.01
