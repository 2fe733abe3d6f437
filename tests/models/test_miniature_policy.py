import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models import MiniatureModel, Policy
from thalweg.models.miniature.policy import LoRA

ADAPTED = MiniatureModel(lora=LoRA(rank=2, alpha=4.0))


def inputs(policy, prompts, rows: int = 4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *policy.latent_shape, generator=generator)
    return x, torch.rand(rows, generator=generator), policy.encode(prompts[:rows])


def test_the_miniature_and_the_closed_form_keep_the_contract(tiny_policy, linear_policy):
    assert isinstance(tiny_policy(), Policy) and isinstance(linear_policy(), Policy)


def test_a_prompt_becomes_the_tokens_of_its_words(tiny_policy):
    tokens = tiny_policy().encode([Prompt("a circle"), Prompt("a small circle")]).tensors["tokens"]
    assert tokens[0, 0] == tokens[1, 0] != tokens[0, 1] == tokens[1, 2]
    assert (tokens[0, 2:] == 0).all() and (tokens[1, :3] > 0).all()


def test_latents_decode_to_pixels_between_zero_and_one(tiny_policy):
    latents = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 9.0]).view(1, 1, 6, 1).expand(1, 3, 6, 1)
    pixels = tiny_policy().decode(latents)[0, 0].flatten()
    assert_close(pixels, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0]))


def test_guidance_extrapolates_from_the_empty_prompt_and_costs_two_passes(tiny_policy, prompts):
    plain, guided = tiny_policy(), tiny_policy(MiniatureModel(guidance_scale=3.0))
    x, sigma, condition = inputs(plain, prompts)
    empty = plain.encode([Prompt("")] * 4)
    assert (empty.tensors["tokens"] == 0).all()
    conditional, unconditional = plain.velocity(x, sigma, condition), plain.velocity(x, sigma, empty)
    expected = unconditional + 3 * (conditional - unconditional)
    assert_close(guided.velocity(x, sigma, condition), expected, atol=1e-5, rtol=1e-4)
    assert (plain.passes.evaluations, guided.passes.evaluations) == (8, 8)
    assert (plain.passes_per_velocity, guided.passes_per_velocity) == (1, 2)


def test_a_guidance_scale_of_zero_ignores_the_prompt(tiny_policy, prompts):
    policy = tiny_policy(MiniatureModel(guidance_scale=0.0))
    x, sigma, condition = inputs(policy, prompts)
    assert_close(
        policy.velocity(x, sigma, condition), policy.velocity(x, sigma, policy.encode([Prompt("")] * 4))
    )


def test_without_adapters_every_parameter_is_trained(tiny_policy):
    policy = tiny_policy()
    assert set(policy.weights.parameters) == {name for name, _ in policy.network.named_parameters()}


def test_with_lora_adapters_alone_are_trained_and_named(tiny_policy):
    policy = tiny_policy(ADAPTED)
    policy.weights.add("reference")
    trained = {name for name, p in policy.network.named_parameters() if p.requires_grad}
    assert trained == set(policy.weights.parameters) == set(policy.weights.tensors("reference"))
    assert trained and all("lora_" in name for name in trained)
    assert {p.shape[0] for name, p in policy.weights.parameters.items() if "lora_A" in name} == {2}


def test_lora_starts_at_the_base_the_same_in_every_process(tiny_policy, prompts):
    base, one, two = tiny_policy(), tiny_policy(ADAPTED), tiny_policy(ADAPTED)
    x, sigma, condition = inputs(base, prompts)
    assert torch.equal(one.velocity(x, sigma, condition), base.velocity(x, sigma, condition))
    for name, values in one.weights.parameters.items():
        assert torch.equal(values, two.weights.parameters[name])
    assert any((p != 0).any() for name, p in one.weights.parameters.items() if "lora_A" in name)


def test_making_adapters_leaves_the_random_state_alone(tiny_policy):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny_policy(ADAPTED)
    assert torch.equal(torch.rand(1), expected)


def test_an_adapter_is_scaled_by_alpha_over_rank(tiny_policy, prompts):
    # Twice the scale and half the values give the same velocity.
    one, two = tiny_policy(ADAPTED), tiny_policy(MiniatureModel(lora=LoRA(rank=2, alpha=8.0)))
    x, sigma, condition = inputs(one, prompts)
    with torch.no_grad():
        for policy, size in ((one, 0.2), (two, 0.1)):
            for name, values in policy.weights.parameters.items():
                if "lora_B" in name:
                    values.fill_(size)
    assert_close(one.velocity(x, sigma, condition), two.velocity(x, sigma, condition), atol=1e-5, rtol=1e-4)
    assert (
        one.velocity(x, sigma, condition) - tiny_policy().velocity(x, sigma, condition)
    ).abs().max() > 0.01


def test_a_named_set_changes_the_velocity_and_a_graph_keeps_it(tiny_policy, prompts):
    policy = tiny_policy(ADAPTED)
    policy.weights.add("reference")
    x, sigma, condition = inputs(policy, prompts)
    with torch.no_grad():
        before = policy.velocity(x, sigma, condition)
        for values in policy.weights.parameters.values():
            values += 0.1
        assert (policy.velocity(x, sigma, condition) - before).abs().max() > 0.01
        with policy.weights.use("reference"):
            assert torch.equal(policy.velocity(x, sigma, condition), before)
    graph = policy.velocity(x, sigma, condition)
    with pytest.raises(RuntimeError, match="wait for backward"), policy.weights.use("reference"):
        pass
    graph.sum().backward()
    with policy.weights.use("reference"):
        pass


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4.0)])
def test_checkpointed_activations_give_the_same_gradient(lora, tiny_policy, prompts):
    found = []
    for checkpointing in (False, True):
        policy = tiny_policy(MiniatureModel(lora=lora, gradient_checkpointing=checkpointing))
        x, sigma, condition = inputs(policy, prompts)
        policy.velocity(x, sigma, condition).square().mean().backward()
        found.append([p.grad for p in policy.weights.parameters.values()])
    assert all(grad is not None for grad in found[0] + found[1])
    assert_close(found[0], found[1])
    assert sum(float(grad.abs().sum()) for grad in found[0]) > 0.1


def test_bfloat16_changes_the_velocity_by_its_rounding_and_returns_float32(tiny_policy, prompts):
    exact, rounded = tiny_policy(), tiny_policy(MiniatureModel(precision="bfloat16"))
    x, sigma, condition = inputs(exact, prompts)
    sigma = sigma.clamp(min=0.3)
    one, two = exact.velocity(x, sigma, condition), rounded.velocity(x, sigma, condition)
    assert two.dtype == torch.float32
    assert 0 < (one - two).abs().max() < 0.1 * one.abs().max()


def test_an_unknown_world_is_answered_by_the_nearest():
    with pytest.raises((ValidationError, UserError), match="did you mean 'scenes'"):
        MiniatureModel(world="scnes")
