"""What a user can get wrong about a real model: one clear line each."""

import diffusers
import pytest
from pydantic import ValidationError

from cli.command import thalweg
from models.diffusers.builders import TINY
from models.diffusers.stock import model_of
from thalweg.core.errors import UserError
from thalweg.models.diffusers.doctor import examine_pipeline
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy

__all__ = ["thalweg"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "/nowhere"}, "model.path='/nowhere': no such folder"),
        ({"path": "owner/name"}, "model.path='owner/name': no such folder, and the hub"),
        ({"path": "."}, r"model_index\.json is missing"),
    ],
)
def test_a_pipeline_that_is_not_there(settings, message):
    with pytest.raises(UserError, match=message):
        DiffusersModel(**settings).load()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flux", {"height": 34}, "model.height=34: FluxPipeline needs multiples of 4; give 32 or 36"),
        ("sd3", {"height": 34}, "StableDiffusion3Pipeline refuses the settings: .*divisible by 4"),
        ("sd3", {"num_frames": 5}, "model.num_frames: StableDiffusion3Pipeline takes no 'num_frames'"),
        ("sd3", {"call": {"clip_skp": 1}}, "model.call.clip_skp: .*; did you mean 'clip_skip'?"),
        ("sd3", {"lora": {"targets": ("nothing",)}}, "no such linear layer in its blocks"),
    ],
)
def test_settings_that_do_not_fit_the_pipeline(name, settings, message):
    with pytest.raises(UserError, match=message):
        DiffusersPolicy(prepare(TINY[name].build()), model_of(name, **settings))


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EDMEulerScheduler(),
        diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
    ],
)
def test_a_scheduler_that_is_neither_a_flow_nor_has_a_table_is_refused(scheduler):
    pipeline = TINY["sd15"].build()
    pipeline.scheduler = scheduler
    with pytest.raises(
        UserError, match=f"with {type(scheduler).__name__} .* neither a flow nor has it DDPM's"
    ):
        DiffusersPolicy(prepare(pipeline), model_of("sd15"))


def test_numbers_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="give lora, or precision=float32"):
        DiffusersModel(path="x", lora=None)
    with pytest.raises(ValidationError, match="'latents' is given by the rollout"):
        DiffusersModel(path="x", call={"latents": 1})


def test_the_doctor_says_what_works(tiny_folder, thalweg):
    folder = tiny_folder("z_image")
    outcome = thalweg(
        "doctor", f"model={folder}", "model.height=32", "model.width=32", "model.precision=float32"
    )
    assert outcome.code == 0, outcome.out + outcome.err
    for line in ("ZImagePipeline", "stock parity", "replay error", "no, a call each", "decoding"):
        assert line in outcome.out
    outcome = thalweg("doctor", f"model={folder}", "model.hight=32")
    assert outcome.code == 2 and "did you mean 'height'?" in outcome.err


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_doctor_finds_nothing_wrong_with_pipelines_that_predict_noise(name, tiny_folder):
    model = model_of(name, path=str(tiny_folder(name)), guidance_scale=3.0)
    findings = examine_pipeline(model)
    assert {f.what for f in findings} >= {"stock parity", "replay error", "decoding"}
    assert all(f.ok for f in findings), findings


def test_a_device_that_is_not_here_is_named(tiny_folder):
    with pytest.raises(UserError, match=r"model\.device='meta2'"):
        model_of("sd3", path=str(tiny_folder("sd3")), device="meta2").load()
