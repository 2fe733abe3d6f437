"""Real families whose samples are shared by processes, each with a part of the tokens."""

import os

import pytest
import torch
from torch.testing import assert_close

from models.diffusers.test_sharded import PROPORTIONAL, policy_of
from models.diffusers.test_training import settings_of
from thalweg.core.errors import UserError
from thalweg.core.processes import Processes, connect, disconnect
from thalweg.core.values import Prompt
from thalweg.models.diffusers.ulysses import share_samples
from thalweg.training.distribution.parallel import Parallel
from thalweg.training.loop import train
from thalweg.training.preflight.plan import plan_of
from thalweg.training.recipe.load import find_recipe, load_recipe
from training.several_processes import on_processes
from training.small_runs import trains

__all__ = ["settings_of"]

FULL = {"lora": None, "precision": "float32"}
CHECKPOINTED = {"model.gradient_checkpointing": True, "objective.sigmas.num_sigmas": 2}


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
        "qwen_image",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("wan_two_networks", "wan_tokens_with_levels", "chronoedit")
        ),
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


def of_two_minds(images, prompts):
    """A judge that says something else to every second process."""
    return images.mean((1, 2, 3)) if int(os.environ.get("RANK", "0")) % 2 == 0 else torch.rand(len(images))


@pytest.mark.parametrize(
    ("recipe", "processes", "ulysses", "extra"),
    [
        ("diffusion-nft", 2, 2, {}),
        ("flow-grpo", 4, 2, {"rollout.micro_batch": 4}),
        pytest.param("dgpo", 2, 2, CHECKPOINTED, marks=pytest.mark.slow),
    ],
)
def test_processes_that_share_samples_train_as_one_does_even_if_a_judge_tells_them_different_things(
    recipe, processes, ulysses, extra, on_cpu, settings_of, tmp_path
):
    settings = settings_of("flux") | PROPORTIONAL | {"rewards": [of_two_minds], "iterations": 3} | extra
    settings |= {"run.save_every": 1, "run.keep_last": 3, "evaluation.diversity_prompts": 0}
    settings |= {"evaluation.num_prompts": 1, "rollout.steps": 2}

    def loaded(size):
        return load_recipe(find_recipe(recipe), settings | {"parallel.ulysses": size})

    train(loaded(1), tmp_path / "one")
    on_processes(processes, lambda: train(loaded(ulysses), tmp_path / "shared"), timeout=60)
    for line, alone in zip(trains(tmp_path / "shared"), trains(tmp_path / "one"), strict=True):
        assert line["reward"] == pytest.approx(alone["reward"], abs=1e-5)
        assert line["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert line["evaluations"] == alone["evaluations"]
        assert line["processes"] == processes
        assert line["samples_local"] == line["samples"] // (processes // ulysses)
    moved, expected = (policy_of(tmp_path / r, 2) - policy_of(tmp_path / r, 0) for r in ("shared", "one"))
    assert expected.norm() > 0
    assert (moved - expected).abs().max() < 1e-5
    assert (moved - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("sd3", 2, "StableDiffusion3Pipeline cannot be split by its tokens .* has no plan for it"),
        ("ltx2", 2, "LTX2Pipeline cannot be split by its tokens .* has a plan without a test"),
        ("flux", 3, "the 2 attention heads of FluxTransformer2DModel do not split over 3 processes"),
        ("flux", 2, "splits samples over accelerators, and there is none"),
    ],
)
def test_a_network_that_cannot_be_split_is_refused(name, size, words, tiny_policy_of, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    with pytest.raises(UserError, match=f"parallel.ulysses={size}: .*{words}"):
        share_samples(tiny_policy_of(name), size, Processes(0, size), Prompt("a"))


def test_tokens_that_do_not_split_are_refused(on_cpu, tiny_policy_of):
    policy = tiny_policy_of("flux", max_sequence_length=33)

    def work():
        processes = connect()
        with pytest.raises(UserError, match="the tokens of FluxPipeline do not split over 2 processes"):
            share_samples(policy, 2, processes, Prompt("a"))
        disconnect(processes)

    on_processes(2, work)


def test_a_number_of_processes_that_the_groups_do_not_divide_is_refused(settings_of, tmp_path):
    assert Parallel(ulysses=2).contexts(6) == 3
    with pytest.raises(UserError, match=r"parallel\.ulysses=2 does not divide the number of processes, 3"):
        Parallel(ulysses=2).contexts(3)
    alone = load_recipe("flow-grpo", settings_of("flux") | {"rewards": ["brightness"], "parallel.ulysses": 2})
    with pytest.raises(UserError, match="does not divide the number of processes, 1: start a multiple of 2"):
        train(alone, tmp_path / "run")


def test_noises_that_the_groups_do_not_divide_are_refused(settings_of):
    one = {"data.prompts_per_iteration": 1, "rollout.group_size": 3, "parallel.ulysses": 2}
    recipe = load_recipe("flow-grpo", settings_of("flux") | {"rewards": ["brightness"]} | one)
    assert plan_of(recipe, 16, 1, 0, 6).roots_per_process == 1
    with pytest.raises(UserError, match=r"do not split over 2 groups of 2 processes: .* a multiple of 2"):
        plan_of(recipe, 16, 1, 0, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "parallel.ulysses=2: model.kind='miniature' has no network of diffusers"),
        ({"parallel.weights": "fsdp"}, "parallel.ulysses=2: with parallel.weights='fsdp'"),
    ],
)
def test_what_samples_cannot_be_shared_with_is_refused_when_the_recipe_is_read(changes, words):
    with pytest.raises(UserError, match=words):
        load_recipe("flow-grpo", {"parallel.ulysses": 2} | changes)
