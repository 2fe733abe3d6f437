"""A run on its way out: the folder that a user gets, and what is refused."""

from importlib.util import find_spec

import pytest
from safetensors.torch import save

from thalweg.core.errors import UserError
from thalweg.training.folder.export import curve_picture, export

if find_spec("diffusers") is None:
    pytest.skip("needs diffusers", allow_module_level=True)

from cli.command import thalweg
from models.diffusers.builders import TINY
from models.diffusers.stock import model_of, quiet
from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe

__all__ = ["thalweg"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations of a tiny SD3 whose adapters have alpha = 4 rank."""
    quiet()
    folder = tmp_path_factory.mktemp("export")
    TINY["sd3"].build().save_pretrained(folder / "sd3")
    (folder / "prompts.txt").write_text("a red square\na green line\n")
    model = model_of("sd3", precision="bfloat16").model_dump(mode="json", exclude={"path"})
    settings = {
        "model": str(folder / "sd3"),
        **{f"model.{key}": value for key, value in model.items() if value is not None},
        "model.lora": {"rank": 2, "alpha": 8},
        "data.prompts": str(folder / "prompts.txt"),
        "evaluation.prompts": str(folder / "prompts.txt"),
        "rewards": ["brightness"],
        "iterations": 2,
        "optim.learning_rate": 0.05,
        "data.prompts_per_iteration": 2,
        "rollout.group_size": 4,
        "rollout.steps": 3,
        "evaluation.every": 2,
        "evaluation.num_prompts": 2,
        "evaluation.diversity_prompts": 1,
        "evaluation.diversity_group": 2,
        "evaluation.steps": 2,
    }
    return train(load_recipe("flow-grpo", settings), folder / "run").path


def test_a_folder_is_whole_checked_and_describes_itself(run, tmp_path, thalweg):
    outcome = thalweg("export", run, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md",
        "recipe.yaml",
        "reward.svg",
        "samples-before.png",
        "samples-after.png",
        "pytorch_lora_weights.safetensors",
    }
    assert set(outcome.out.split()) == {str(tmp_path / "out" / name) for name in names}
    assert "read back into a fresh pipeline: differs by" in outcome.err
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "library_name: diffusers",
        "base_model: ",
        "License: to be stated by whoever publishes this",
        'pipeline.load_lora_weights(FOLDER, weight_name="pytorch_lora_weights.safetensors")',
        "| reward | ",
        "(reward.svg)",
        "(samples-after.png)",
    ):
        assert words in card
    assert not list(tmp_path.glob(".partial*"))


def test_other_forms_are_written_and_checked_too(run, tmp_path):
    merged = export(run, tmp_path / "merged", merged=True)
    assert tmp_path / "merged" / "model_index.json" in merged.paths and merged.difference <= 1e-5
    comfyui = export(run, tmp_path / "comfyui", "comfyui")
    assert tmp_path / "comfyui" / "comfyui.safetensors" in comfyui.paths and comfyui.difference <= 1e-5


def test_what_reads_back_differently_is_not_kept(run, tmp_path, monkeypatch):
    from thalweg.models.diffusers import adapters

    # The metadata carry alpha: without them a reader takes alpha = rank.
    monkeypatch.setattr(adapters, "save", lambda tensors, metadata: save(tensors))
    with pytest.raises(UserError, match=r"differs by \d.* so nothing was kept"):
        export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "comfy"}, "--layout comfy: no such layout; give diffusers or comfyui"),
        ({"layout": "comfyui", "merged": True}, "--merged writes a pipeline, which --layout comfyui is not"),
    ],
)
def test_forms_that_are_none_are_refused(options, words, run, tmp_path):
    with pytest.raises(UserError, match=words):
        export(run, tmp_path / "out", **options)


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match="is not an empty folder; give a new one"):
        export(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_curve_runs_from_its_lowest_to_its_highest_point():
    picture = curve_picture({"reward": [(1, 0.0), (3, 2.0)]})
    assert 'points="60.0,220.0 580.0,20.0"' in picture and ">2<" in picture and ">iteration 3<" in picture
