"""Gradient surgery: the gradient through an input of a module is scaled, and nothing else changes."""

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from models.diffusers.stock import PROMPTS, model_of
from thalweg.core.errors import UserError
from thalweg.models.diffusers.doctor import examine_pipeline
from thalweg.models.diffusers.model import DiffusersModel, GradientScale

SIGMA = torch.tensor([0.8, 0.4])


def surgery(scale, blocks=(0, 0)):
    return (
        GradientScale(
            modules="audio_to_video_attn", input="encoder_hidden_states", scale=scale, blocks=blocks
        ),
    )


@pytest.fixture
def differentiated(tiny_policy_of):
    """(velocity, gradients of a loss of one part) of a tiny LTX-2 with these scales."""

    def make(scales=(), part=0, **changes):
        policy = tiny_policy_of("ltx2", gradient_scales=scales, **{"lora": None, **changes})
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in policy.weights.parameters.items():
                if "lora_B" in name:  # at 0 nothing would flow back to A
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(2, *policy.latent_shape, generator=generator)
        velocity = policy.velocity(x, SIGMA, policy.encode(PROMPTS))
        velocity.split(policy.parts, 1)[part].square().sum().backward()
        return velocity.detach(), {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in policy.weights.parameters.items()
        }

    return make


@pytest.mark.parametrize("changes", [{"lora": {"rank": 2, "alpha": 2}}, {"gradient_checkpointing": True}])
def test_gradients_are_linear_in_the_scale_of_one_block_and_the_velocity_stays_to_the_bit(
    changes, differentiated
):
    plain, unscaled = differentiated(**changes)
    found = {}
    for scale in (0.0, 0.5, 1.0):
        velocity, found[scale] = differentiated(surgery(scale), **changes)
        assert torch.equal(velocity, plain)
    for name, slope in unscaled.items():
        assert torch.equal(found[1.0][name], slope)
        assert_close(found[0.5][name], (found[0.0][name] + slope) / 2, rtol=1e-4, atol=1e-5)
    of_audio = [name for name in unscaled if "blocks.0.audio_attn1.to_v" in name]
    assert any((found[0.0][name] - unscaled[name]).norm() > 0.01 * unscaled[name].norm() for name in of_audio)


def test_a_checkpointed_pass_scales_once(differentiated):
    scales = surgery(0.5, blocks=(0, 1))
    _, kept = differentiated(scales)
    _, computed_again = differentiated(scales, gradient_checkpointing=True)
    for name, slope in kept.items():
        assert_close(computed_again[name], slope, rtol=1e-4, atol=1e-6)


def test_with_all_blocks_stopped_a_loss_of_the_video_does_not_reach_what_only_the_sound_is_made_of(
    differentiated,
):
    _, plain = differentiated()
    _, stopped = differentiated(surgery(0.0, blocks=None))
    of_audio = [name for name in plain if ".audio_attn" in name or ".audio_ff." in name]
    reached = [name for name in of_audio if plain[name].any()]
    assert any("blocks.1.audio_attn1" in name for name in reached)
    assert not any(stopped[name].any() for name in of_audio)
    # The attention's own keys and values are not its input: they learn.
    own = "transformer.transformer_blocks.0.audio_to_video_attn.to_v.weight"
    assert stopped[own].any()


def test_a_loss_of_the_sound_reaches_it_as_before_where_video_never_comes_back(differentiated):
    # In the last block the video that has heard the sound is not listened to any more.
    _, plain = differentiated(part=1)
    _, stopped = differentiated(surgery(0.0, blocks=(1, 1)), part=1)
    assert all(torch.equal(stopped[name], slope) for name, slope in plain.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"modules": "audio_to_video_atn"},
            r"model\.gradient_scales\.0\.modules='audio_to_video_atn': LTX2VideoTransformer3DModel has no "
            "module of that name; did you mean 'audio_to_video_attn'?",
        ),
        (
            {"blocks": (1, 2)},
            r"model\.gradient_scales\.0\.blocks=\[1, 2\]: 'audio_to_video_attn' stands in blocks 0 \.\. 1",
        ),
        ({"modules": "proj_out", "blocks": (0, 0)}, "'proj_out' stands in no numbered block"),
        (
            {"input": "encoder_hidden_state"},
            r"model\.gradient_scales\.0\.input='encoder_hidden_state': LTX2Attention takes no such argument; "
            "did you mean 'encoder_hidden_states'?",
        ),
    ],
)
def test_a_scale_that_would_act_nowhere_is_refused(changes, message, tiny_policy_of):
    scale = surgery(0.5)[0].model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        tiny_policy_of("ltx2", gradient_scales=(scale,))


def test_an_input_that_is_scaled_twice_or_never_given_is_refused(tiny_policy_of):
    twice = (*surgery(0.5, (0, 1)), *surgery(0.1, (1, 1)))
    with pytest.raises(UserError, match=r"blocks\.1\.audio_to_video_attn is scaled by .*scales\.0 already"):
        tiny_policy_of("ltx2", gradient_scales=twice)
    absent = GradientScale(modules="attn1", input="encoder_hidden_states", scale=0.5)
    policy = tiny_policy_of("ltx2", gradient_scales=(absent,))
    with pytest.raises(UserError, match="the pipeline does not give it to 'attn1'"):
        policy.velocity(torch.zeros(1, *policy.latent_shape), SIGMA[:1], policy.encode(PROMPTS[:1]))


def test_the_doctor_says_how_many_inputs_are_scaled_and_what_can_be_looked_at(tiny_folder):
    model = model_of("ltx2", path=str(tiny_folder("ltx2")), gradient_scales=surgery(0.5, blocks=(0, 1)))
    found = {finding.what: finding for finding in examine_pipeline(model)}
    assert found["inputs with scaled gradient"].value == "2"
    assert found["attention that can be noted"].value == "video_to_audio_attn, audio_to_video_attn"
    assert found["replay error"].value == "0"


def test_blocks_are_first_and_last():
    with pytest.raises(ValidationError, match=r"\[3, 1\]: first and last block, counted from 0"):
        DiffusersModel(
            path="a",
            gradient_scales=({"modules": "attn1", "input": "hidden_states", "scale": 1, "blocks": (3, 1)},),  # type: ignore[arg-type]
        )
