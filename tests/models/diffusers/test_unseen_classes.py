"""Pipelines that nobody wrote a line for: the doctor is right about them, or one line refuses them."""

import json
import runpy

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from models.diffusers.builders import GRADIENT
from models.diffusers.builders_more import STARTED_FROM
from models.diffusers.stock import TINY, model_of
from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models.diffusers import conditions, doctor, refusals
from thalweg.models.diffusers.doctor import examine_pipeline
from thalweg.models.diffusers.families import FAMILIES, Family
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy
from thalweg.models.diffusers.readings import FlowReading
from thalweg.models.diffusers.refusals import in_a_line
from thalweg.models.diffusers.seam import Seam


def started_from(name, **call):
    tiny = STARTED_FROM[name]
    settings = {k: v for k, v in tiny.settings.items() if k != "max_sequence_length"}
    model = model_of("sd3", **{**settings, "call": {**tiny.call, **call}, "max_sequence_length": None})
    return DiffusersPolicy(prepare(tiny.build()), model)


def finding(findings, what):
    return next(found for found in findings if found.what == what)


@pytest.mark.parametrize("name", ["cogview4", "ernie", "wan_vace", "flux_fill", "mochi"])
def test_the_doctor_finds_nothing_wrong_with_them(name, tiny_folder):
    findings = examine_pipeline(model_of(name, path=str(tiny_folder(name))))
    assert {f.what for f in findings} >= {
        "stock parity",
        "two prompts in one call",
        "gradient by differences",
        "gradient of decoding",
    }
    assert all(f.ok for f in findings), findings


def test_the_doctor_names_the_size_that_is_made_instead(tiny_policy_of):
    # Kandinsky 5 brings a size to the nearest in proportion of a list, and says nothing.
    model = tiny_policy_of("kandinsky_image", width=64)
    latents = torch.zeros(1, *model.latent_shape)
    found = doctor._decoding(model, latents, [model.decode(latents)], 1e-4)
    assert not found.ok and found.advice == "not the size that was asked for; give model.width=32"


def test_the_doctor_sees_a_gradient_that_lacks_a_part(tiny_policy_of):
    model = tiny_policy_of("hidream")
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    experts = [m for n, m in model.networks["transformer"].named_modules() if n.endswith("experts")]
    for parameter in (p for module in experts for p in module.parameters()):
        parameter.data *= 3  # a good part of what is computed
    assert all(found.ok for found in doctor._slopes(model, noise, noise))
    for module in model.networks["transformer"].modules():
        module.training = False  # its experts are then run without gradient
    found, of_decoding = doctor._slopes(model, noise, noise)
    assert not found.ok and "lets no gradient through" in found.advice
    model.decode = torch.no_grad()(model.decode)
    _, of_decoding = doctor._slopes(model, noise, noise)
    assert (of_decoding.value, of_decoding.ok) == ("none", True) and "climb a reward" in of_decoding.advice


def test_the_doctor_survives_a_decoder_that_cannot_be_differentiated_here(tiny_policy_of, monkeypatch):
    model = tiny_policy_of("mochi")
    latents, decode = torch.zeros(1, *model.latent_shape), model.decode

    def without_backward(x):
        if torch.is_grad_enabled() and x.requires_grad:
            raise NotImplementedError("no backward on CPU")
        return decode(x)

    monkeypatch.setattr(model, "decode", without_backward)
    _, found = doctor._slopes(model, latents, latents)
    assert (found.value, found.ok) == ("none", True) and found.advice.endswith("no backward on CPU")


def test_the_doctor_sees_prompts_that_the_network_is_not_told(tiny_policy_of):
    model = tiny_policy_of("ovis", max_sequence_length=8)  # its own template is longer
    found = doctor._prompts(model, torch.zeros(1, *model.latent_shape), 1e-4)
    assert (found.value, found.ok) == ("make the same", False)


def test_the_doctor_sees_rows_that_change_each_other(tiny_policy_of, monkeypatch):
    # The control image is encoded with noise of its own for each row.
    monkeypatch.setitem(FAMILIES, "FluxControlPipeline", Family())
    model = tiny_policy_of("flux_control")
    found = doctor._prompts(model, torch.zeros(1, *model.latent_shape), 1e-4)
    assert not found.ok and "one_row=True" in found.advice


@pytest.mark.parametrize("name", STARTED_FROM)
def test_a_pipeline_that_starts_part_way_is_refused(name):
    with pytest.raises(UserError, match=r"model\.call\.strength=0\.\d: \w+ starts part way"):
        started_from(name)


@pytest.mark.parametrize("name", ["flux_from_image", "sd3_from_image", "z_image_from_image"])
def test_a_picture_that_the_network_is_not_shown_is_refused(name):
    with pytest.raises(UserError, match=r"model\.call\.\w+: \w+ does not show its network that"):
        started_from(name, strength=1.0)


def test_what_a_pipeline_stumbles_over_is_told_in_a_line(monkeypatch, tiny_policy_of):
    monkeypatch.setitem(FAMILIES, "MochiPipeline", Family())
    with pytest.raises(
        UserError, match=r"MochiPipeline fails .*: .* \(ZeroDivisionError in pipeline_mochi\.py, line \d+\)"
    ):
        tiny_policy_of("mochi")


@pytest.mark.parametrize(("house", "error"), [("here", TypeError), ("elsewhere", UserError)])
def test_our_own_errors_are_left_alone(house, error, tiny_policy_of, tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "HOUSE", tmp_path / house)
    (file := tmp_path / "here" / "pipe.py").parent.mkdir()
    file.write_text("raise TypeError('no such thing')")
    with pytest.raises(error, match="no such thing"), in_a_line(tiny_policy_of("sd3").pipeline):
        runpy.run_path(str(file))


def test_a_class_that_is_not_installed_is_told(tiny_folder):
    folder = tiny_folder("sd3")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "TomorrowsPipeline"}))
    with pytest.raises(UserError, match=r"TomorrowsPipeline.*\); install that, or a newer diffusers"):
        model_of("sd3", path=str(folder)).load()


def test_levels_above_one_are_refused():
    pipeline = prepare(TINY["sd3"].build())
    pipeline.scheduler.register_to_config(sigma_max=80.0)  # Cosmos
    with pytest.raises(UserError, match=r"levels of StableDiffusion3Pipeline go up to 80\.0"):
        DiffusersPolicy(pipeline, model_of("sd3"))


def test_an_inverted_scheduler_tells_the_network_one_minus_sigma_and_gets_the_opposite_velocity():
    reading, sigma, output = FlowReading(1000, inverted=True), torch.tensor([1.0, 0.25]), torch.ones(2, 3)
    assert_close(reading.timestep(sigma), torch.tensor([0.0, 750.0]))
    assert_close(reading.velocity(output, output, sigma), -output)


@pytest.mark.parametrize(("kind", "mu", "shift"), [("linear", 3.0, 3.0), ("exponential", 1.2, 3.3201169)])
def test_where_levels_alone_are_shifted_the_network_is_told_the_time_before(kind, mu, shift):
    seam = Seam(use_dynamic_shifting=True, time_shift_type=kind)
    seam.reading = FlowReading(1000)
    for time in (0.2, 0.7, 1.0):
        seam.hold(torch.tensor([shift / (shift + 1 / time - 1)]))
        seam.set_timesteps(1, sigmas=[1.0], mu=mu)
        shifted = float(seam.timesteps)
        seam.set_timesteps(1, sigmas=[1.0], mu=mu, timesteps=[1000])
        assert float(seam.timesteps) == pytest.approx(1000 * time, rel=1e-5)
        assert shifted == pytest.approx(1000 * shift / (shift + 1 / time - 1), rel=1e-5)


def test_an_encoding_may_run_over_prompts_on_any_axis():
    one, other = torch.randn(2, 1, 5, 3), torch.randn(2, 1, 5, 3)  # layers, prompts, tokens, width
    slot = conditions.describe(one, torch.cat([one, one], 1), "text")
    table = conditions.stack([conditions.cut(slot, value) for value in (one, other)])
    assert torch.equal(conditions.join(slot, conditions.trim(table)), torch.cat([one, other], 1))


@pytest.mark.parametrize("given", ["file", "several"])
def test_pictures_are_read_from_the_files_that_an_argument_names(given, tmp_path, tiny_policy_of):
    file = tmp_path / "gradient.png"
    GRADIENT.save(file)
    if given == "file":
        call = {"image": str(file), "mask_image": str(file)}
        read = tiny_policy_of("flux_fill", call=call).arguments
        assert all(isinstance(read[name], Image.Image) for name in call)
    else:
        read = tiny_policy_of("wan_vace", call={"reference_images": [str(file)]}).arguments
        assert isinstance(read["reference_images"][0], Image.Image)


def test_the_picture_beside_a_prompt_reaches_a_network_that_steps_the_other_frames(tiny_policy_of, tmp_path):
    GRADIENT.rotate(180).save(tmp_path / "flipped.png")
    model = tiny_policy_of("ltx_from_image")
    prompts = [Prompt("a fox"), Prompt("a fox", {"image": str(tmp_path / "flipped.png")})]
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, flipped = model.velocity(x.expand(2, *x.shape[1:]), torch.full((2,), 0.5), model.encode(prompts))
    assert (one - flipped).abs().max() > 1e-3
