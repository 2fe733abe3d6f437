"""Real families whose samples are shared by two processes, each with half of the tokens."""

import pytest
import torch
from torch.testing import assert_close

from models.diffusers.test_sharded import PROPORTIONAL, policy_of
from models.diffusers.test_training import settings_of
from thalweg.core.errors import UserError
from thalweg.core.processes import connect, disconnect
from thalweg.core.values import Prompt
from thalweg.models.diffusers.ulysses import share_samples
from thalweg.training.loop import train
from thalweg.training.recipe import find_recipe, load_recipe
from training.several_processes import on_processes
from training.small_runs import trains

__all__ = ["settings_of"]

FULL = {"lora": None, "precision": "float32"}


@pytest.fixture
def on_cpu(monkeypatch):
    """diffusers numbers accelerators modulo how many there are, which is 0 here."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)


def slopes_of(policy):
    """A velocity, and the gradient of a random linear function of it to the input and all weights."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, *policy.latent_shape, generator=draw).requires_grad_()
    direction = torch.randn(2, *policy.latent_shape, generator=draw)
    sigma = torch.full((2,), 0.95)  # one level, which all families take
    velocity = policy.velocity(x, sigma, policy.encode([Prompt("a red square")] * 2))
    policy.weights.backward((velocity * direction).sum())
    named = policy.weights.parameters.items()
    slopes = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in named}
    for parameter in policy.weights.parameters.values():
        parameter.grad = None
    return velocity.detach(), x.grad, slopes


@pytest.mark.parametrize(
    "name",
    [
        "flux",
        "kontext",
        "flux2",
        "flux2_klein",
        "wan",
        "wan_from_image",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("wan_two_networks", "wan_tokens_with_levels")),
    ],
)
def test_gradients_of_the_parts_add_up_to_the_gradient_of_the_whole(name, on_cpu, tiny_policy_of):
    policy = tiny_policy_of(name, **FULL)
    velocity, of_input, whole = slopes_of(policy)

    def work():
        processes = share_samples(policy, 2, connect(), Prompt("a"))
        assert (processes.count, processes.total, processes.is_first) == (
            1,
            2,
            processes.context.position == 0,
        )
        found, told, parts = slopes_of(policy)
        assert_close(found, velocity, atol=1e-5, rtol=1e-4)
        assert_close(told, of_input, atol=1e-4, rtol=1e-4)
        if any(slope.norm() > 0 for slope in whole.values()):
            assert any((parts[n] - whole[n]).norm() > 0.01 * whole[n].norm() for n in parts)  # it is a part
        processes.add(list(parts.values()), of_parts=True)
        for weight, slope in parts.items():
            assert_close(slope, whole[weight], atol=1e-4, rtol=1e-3, msg=lambda m, w=weight: f"{w}: {m}")
        disconnect(processes)

    on_processes(2, work)


@pytest.mark.parametrize(
    ("recipe", "processes", "ulysses", "extra"),
    [
        ("diffusion-nft", 2, 2, {}),
        ("flow-grpo", 4, 2, {"rollout.micro_batch": 4}),
        pytest.param("gcpo", 2, 2, {"model.gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_processes_that_share_samples_train_as_one_does(
    recipe, processes, ulysses, extra, on_cpu, settings_of, tmp_path
):
    settings = settings_of("flux") | PROPORTIONAL | {"rewards": ["brightness"], "iterations": 3} | extra
    settings |= {"run.save_every": 1, "run.keep_last": 3, "evaluation.diversity_prompts": 0}
    settings |= {"evaluation.num_prompts": 1, "rollout.steps": 2}

    def loaded(size):
        return load_recipe(find_recipe(recipe), settings | {"parallel.ulysses": size})

    train(loaded(1), tmp_path / "one")
    on_processes(processes, lambda: train(loaded(ulysses), tmp_path / "shared"), timeout=60)
    for line, alone in zip(trains(tmp_path / "shared"), trains(tmp_path / "one"), strict=True):
        assert line["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert line["evaluations"] == alone["evaluations"]
        assert line["processes"] == processes
        assert line["samples_local"] == line["samples"] // (processes // ulysses)
    moved, expected = (policy_of(tmp_path / r, 2) - policy_of(tmp_path / r, 0) for r in ("shared", "one"))
    assert expected.norm() > 0
    assert (moved - expected).abs().max() < 1e-5
    assert (moved - expected).norm() < 0.01 * expected.norm()
