"""What the policy adds to a pipeline: named weights, remembered prompts, groups of rows, precision."""

import pytest
import torch
from torch.testing import assert_close

from models.diffusers.builders import GRADIENT, SIZE, TINY
from models.diffusers.stock import PROMPTS, model_of
from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models import Policy
from thalweg.models.diffusers.model import Adapters
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy, over_white

HALF = torch.tensor([0.5, 0.5])


def noise_for(policy, rows=2):
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(0))


def test_it_keeps_the_contract(tiny_policy_of):
    assert isinstance(tiny_policy_of("sd3"), Policy)


@pytest.mark.parametrize("name", ["sd3", "wan_two_networks"])
def test_fresh_adapters_leave_the_base_as_it_is_and_named_weights_give_it_back(name, tiny_policy_of):
    policy, base = tiny_policy_of(name), tiny_policy_of(name, lora=None)
    condition, x = policy.encode(PROMPTS), noise_for(policy)
    policy.weights.add("reference")
    with torch.no_grad():
        before = base.velocity(x, HALF, condition)
        assert_close(policy.velocity(x, HALF, condition), before, atol=1e-6, rtol=1e-6)
        for parameter in policy.weights.parameters.values():
            parameter.add_(0.3)
        assert not torch.allclose(policy.velocity(x, HALF, condition), before, atol=1e-2)
        with policy.weights.use("reference"):
            assert_close(policy.velocity(x, HALF, condition), before, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("changes", [{"dora": True}, {"rslora": True}, {"targets": ("to_q", "to_v")}])
def test_the_kinds_of_adapters_train(changes, tiny_policy_of):
    policy = tiny_policy_of("sd3", lora=Adapters(rank=2, alpha=4, **changes))
    policy.velocity(noise_for(policy), HALF, policy.encode(PROMPTS)).square().sum().backward()
    names = [n for n, p in policy.weights.parameters.items() if p.grad is not None and p.grad.any()]
    assert any("lora_B" in n for n in names)
    assert any("magnitude" in n for n in policy.weights.parameters) == ("dora" in changes)
    if "targets" in changes:
        assert all(".to_q." in n or ".to_v." in n for n in policy.weights.parameters)


def test_without_adapters_the_whole_network_is_trained(tiny_policy_of):
    policy = tiny_policy_of("flux", lora=None)
    assert len(policy.weights.parameters) == len(list(policy.pipeline.transformer.parameters()))
    policy.velocity(noise_for(policy), HALF, policy.encode(PROMPTS)).square().sum().backward()
    assert all(p.grad is not None for p in policy.weights.parameters.values())
    assert not any(p.requires_grad for p in policy.pipeline.vae.parameters())


def test_a_prompt_is_encoded_once_and_the_encoders_may_go(tiny_policy_of, monkeypatch):
    monkeypatch.setattr("thalweg.models.diffusers.encoder.REMEMBERED_PROMPTS", 1)
    policy = tiny_policy_of("sd3")
    condition, x = policy.encode(PROMPTS), noise_for(policy)
    with torch.no_grad():
        before = policy.velocity(x, HALF, condition)
        policy.encoder.release(PROMPTS)
        assert policy.pipeline.text_encoder is None and policy.pipeline.tokenizer_3 is None
        assert torch.equal(policy.velocity(x, HALF, policy.encode(PROMPTS)), before)
    policy.decode(x)
    with pytest.raises(UserError, match="'never seen': the text encoders were released"):
        policy.encode([Prompt("never seen")])


def test_a_condition_does_not_depend_on_its_neighbours(tiny_policy_of):
    policy = tiny_policy_of("qwen_image")  # prompts of different lengths
    x = noise_for(policy)
    with torch.no_grad():
        together = policy.velocity(x, HALF, policy.encode(PROMPTS))
        alone = policy.velocity(x[:1], HALF[:1], policy.encode(PROMPTS[:1]))
    assert torch.equal(together[:1], alone)


def test_a_prompt_may_bring_its_own_image(tiny_policy_of, tmp_path):
    file = tmp_path / "flipped.png"
    GRADIENT.rotate(180).save(file)
    policy = tiny_policy_of("kontext")
    same, other = Prompt("a red square"), Prompt("a red square", {"image": str(file)})
    x = noise_for(policy, 1).repeat(3, 1, 1)
    with torch.no_grad():
        one, flipped, again = policy.velocity(x, torch.full((3,), 0.5), policy.encode([same, other, same]))
    assert torch.equal(one, again)
    assert (one - flipped).abs().max() > 1e-3
    with pytest.raises(UserError, match=r"image 'nowhere\.png': cannot be read"):
        policy.encode([Prompt("a", {"image": "nowhere.png"})])


@pytest.mark.parametrize(("name", "dtype"), [("sd3", torch.bfloat16), ("z_image", torch.float32)])
def test_in_bfloat16_states_have_the_dtype_that_the_pipeline_keeps_and_adapters_stay_exact(
    name, dtype, tiny_folder
):
    policy = model_of(name, precision="bfloat16", path=str(tiny_folder(name))).load()
    assert policy.latent_dtype == dtype
    assert {p.dtype for p in policy.weights.parameters.values()} == {torch.float32}
    x = noise_for(policy).to(dtype).float()
    velocity = policy.velocity(x, HALF, policy.encode(PROMPTS))
    assert velocity.dtype == torch.float32
    velocity.square().sum().backward()
    exact = DiffusersPolicy(prepare(TINY[name].build()), model_of(name))
    with torch.no_grad():
        expected = exact.velocity(x, HALF, exact.encode(PROMPTS))
    assert (velocity - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_recomputed_activations_give_the_same_gradient(name, tiny_policy_of):
    grads = []
    for recompute in (False, True):
        policy = tiny_policy_of(name, gradient_checkpointing=recompute)
        policy.velocity(noise_for(policy), HALF, policy.encode(PROMPTS)).square().sum().backward()
        grads.append([p.grad for p in policy.weights.parameters.values() if p.grad is not None])
    for plain, recomputed in zip(*grads, strict=True):
        assert_close(recomputed, plain)


def test_gradient_checkpointing_where_the_network_cannot_is_refused(tiny_policy_of):
    with pytest.raises(
        UserError, match=r"gradient_checkpointing: LongCatAudioDiTTransformer .* leave it out"
    ):
        tiny_policy_of("longcat_audio", gradient_checkpointing=True)


def test_a_guided_velocity_counts_its_passes(tiny_policy_of):
    for scale, passes in ((1.0, 1), (4.0, 2)):
        policy = tiny_policy_of("wan", guidance_scale=scale)
        assert policy.passes_per_velocity == passes
    assert policy.passes.evaluations == 0
    with torch.no_grad():
        policy.velocity(noise_for(policy), HALF, policy.encode(PROMPTS))
    assert policy.passes.evaluations == 4


def test_sizes_reach_the_pipeline(tiny_policy_of):
    policy = tiny_policy_of("sd3", height=SIZE, width=2 * SIZE)
    assert policy.latent_shape == (4, SIZE // 2, SIZE)
    assert policy.decode(noise_for(policy, 3)).shape == (3, 3, SIZE, 2 * SIZE)


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "wan", "sana", "z_image"])
def test_a_prompt_may_bring_its_own_negative_prompt(name, tiny_policy_of):
    def velocity(policy, prompts):
        x = torch.randn(len(prompts), *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return policy.velocity(x, torch.full((len(prompts),), 0.5), policy.encode(prompts))

    mixed = tiny_policy_of(name, call={**TINY[name].call, "negative_prompt": "red"})
    own = Prompt("a fox", {"negative_prompt": "blue blue blue"})
    got = velocity(mixed, [Prompt("a fox"), own])
    for row, negative in enumerate(["red", "blue blue blue"]):
        of_all = tiny_policy_of(name, call={**TINY[name].call, "negative_prompt": negative})
        assert_close(got[row], velocity(of_all, [Prompt("a fox")] * 2)[row])
    assert not torch.allclose(got, velocity(mixed, [own, Prompt("a fox")]))


def test_a_negative_prompt_for_a_call_without_one_is_refused(tiny_policy_of):
    with pytest.raises(
        UserError, match=r"'a fox' has a negative_prompt.*give model\.call\.negative_prompt=''"
    ):
        tiny_policy_of("sd3").encode([Prompt("a fox", {"negative_prompt": "blurry"})])


def test_an_alpha_channel_goes_over_white():
    # Opaque, clear and half clear: 0.2, white, and 0.5 · 0.2 + 0.5.
    images = torch.full((3, 4, 1, 1), 0.2)
    images[:, 3, 0, 0] = torch.tensor([1.0, 0.0, 0.5])
    assert_close(over_white(images), torch.tensor([0.2, 1.0, 0.6])[:, None, None, None].expand(3, 3, 1, 1))
    assert torch.equal(over_white(images[:, :3]), images[:, :3])


@pytest.mark.parametrize("name", ["sd3", "flux", "sd15", "qwen_image", "wan", "sana", "ltx2"])
def test_the_gradient_of_decoding_is_that_of_its_differences(name, tiny_policy_of):
    policy = tiny_policy_of(name)
    draw = torch.Generator().manual_seed(0)
    x, d = (torch.randn(1, *policy.latent_shape, generator=draw) for _ in range(2))
    x.requires_grad_()

    def made(latents: torch.Tensor) -> torch.Tensor:
        decoded = policy.decode(latents)
        return (decoded if isinstance(decoded, torch.Tensor) else decoded.frames).double()

    with torch.no_grad():
        assert not made(x).requires_grad
        # w = 2h J d, so <w, J d> is <w, w> / 2h.
        w = made(x + 1e-3 * d) - made(x - 1e-3 * d)
    (slope,) = torch.autograd.grad((w * made(x)).sum(), x)
    assert float((slope * d).sum()) == pytest.approx(float(w.square().sum() / 2e-3), rel=5e-3)
    policy.model = policy.model.model_copy(update={"gradient_checkpointing": True})
    (again,) = torch.autograd.grad((w * made(x)).sum(), x)
    assert torch.equal(again, slope)
