"""OmniNFT on a tiny LTX-2 by its full-size recipe: both taps at work, and what they reduce to."""

from functools import partial

import pytest
import torch

from cli.command import thalweg
from cli.test_bad_inputs import refused
from models.diffusers.test_training import settings_of
from thalweg.core.errors import UserError
from thalweg.credit import RoutedCredit
from thalweg.models import DiffusersModel
from thalweg.training.loop import resume, train
from thalweg.training.recipe.load import load_recipe
from training.several_processes import on_processes
from training.small_runs import saved_tensors, trains

__all__ = ["settings_of", "thalweg"]

LOOK = {"modules": "video_to_audio_attn", "blocks": [0, 1]}
WEIGHED = {"weight": 3.0, "warmup": 0}


def surgery(scale):
    return [{"modules": "audio_to_video_attn", "input": "encoder_hidden_states", "scale": scale}]


@pytest.fixture
def settings(settings_of):
    """The recipe with few samples, without its taps; Adam would hide the size of gradients."""
    few = {
        "rewards": ["brightness", "loudness"],
        "credit.parts": [["brightness"], ["loudness"]],
        "objective.sigmas": {"kind": "grid", "num_sigmas": 2},
        "optim.epsilon": 1.0,
        "optim.learning_rate": 1.0,
        "optim.max_grad_norm": 1e9,
        "evaluation.diversity_prompts": 0,
        "evaluation.num_prompts": 1,
        "rollout.micro_batch": 8,
        "optim.micro_batch": 16,
        "rollout.attention": None,
        "credit.attended": None,
    }
    return settings_of("ltx2") | few


def with_taps(settings, scale, attended):
    taps = {"model.gradient_scales": surgery(scale), "rollout.attention": LOOK, "credit.attended": attended}
    return settings | taps


def test_an_iteration_with_both_taps_moves_the_adapters(settings, tmp_path):
    run = tmp_path / "run"
    train(load_recipe("ltx-2/omninft", with_taps(settings, 0.1, WEIGHED)), run)
    line = trains(run)[0]
    assert line["grad_norm"] > 0 and torch.isfinite(torch.tensor(line["loss"]))
    assert line["samples"] == 8


@pytest.mark.slow
def test_taps_that_do_nothing_are_plain_routed_nft_to_the_bit_and_others_are_not(settings, tmp_path):
    runs = {
        "plain": settings,
        "idle": with_taps(settings, 1.0, WEIGHED | {"weight": 1.0}),
        "scaled": with_taps(settings, 0.0, WEIGHED | {"weight": 1.0}),
        "weighed": with_taps(settings, 1.0, WEIGHED),
    }
    for name, overrides in runs.items():
        train(load_recipe("ltx-2/omninft", overrides), tmp_path / name)
    plain = trains(tmp_path / "plain")[0]
    assert plain["grad_norm"] > 0
    idle, scaled, weighed = (trains(tmp_path / name)[0] for name in ("idle", "scaled", "weighed"))
    for key in ("reward", "loss", "grad_norm", "evaluations", "backwards"):
        assert idle[key] == plain[key]
    saved = [dict(saved_tensors(tmp_path / name)) for name in ("plain", "idle", "weighed")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[1][name], tensor) for name, tensor in saved[0].items())
    assert not all(torch.equal(saved[2][name], tensor) for name, tensor in saved[0].items())
    assert scaled["loss"] == plain["loss"] and scaled["grad_norm"] != plain["grad_norm"]
    assert weighed["loss"] != plain["loss"] and weighed["reward"] == plain["reward"]
    assert weighed["evaluations"] == plain["evaluations"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["replicated", "fsdp"])
def test_two_processes_and_a_resumed_run_weigh_the_same_elements(weights, settings, tmp_path):
    both = with_taps(settings, 0.1, WEIGHED | {"warmup": 2}) | {
        "iterations": 3,
        "run.save_every": 1,
        "run.keep_last": 3,
    }
    recipe = load_recipe("ltx-2/omninft", both)
    train(recipe, tmp_path / "one")
    together = load_recipe("ltx-2/omninft", both | {"parallel.weights": weights})
    on_processes(2, partial(train, together, tmp_path / "two"), timeout=120)
    train(load_recipe("ltx-2/omninft", both | {"iterations": 1}), tmp_path / "stopped")
    resume(tmp_path / "stopped", recipe)
    for other in ("two", "stopped"):
        for line, alone in zip(trains(tmp_path / other), trains(tmp_path / "one"), strict=True):
            assert line["loss"] == pytest.approx(alone["loss"], abs=1e-5)
            assert line["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)


def test_the_full_size_recipe_has_both_taps():
    recipe = load_recipe("ltx-2/omninft")
    model, credit, noted = recipe.model, recipe.credit, recipe.rollout.attention
    assert isinstance(model, DiffusersModel) and isinstance(credit, RoutedCredit) and noted is not None
    assert credit.attended is not None and credit.attended.weight_at(200) == 1.25
    assert [(scale.blocks, scale.scale) for scale in model.gradient_scales] == [
        ((0, 0), 0.0),
        ((1, 10), 0.1),
        ((40, 47), 0.3),
    ]
    assert [step for step in range(20) if noted.acts(step, 20)] == list(
        range(10, 19)
    )  # int(.5 20), int(.9 20)


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("omninft", ["credit.attended={}"], ["credit.attended: weighs elements by attention"]),
        (
            "ltx-2/omninft",
            ["credit.attended=null"],
            ["rollout.attention: only credit 'routed' with credit.attended reads it"],
        ),
        (
            "omninft",
            ["credit.attended={}", "rollout.attention={modules: video_to_audio_attn}"],
            ["rollout.attention: the model 'sounding' has no attention to note"],
        ),
        (
            "ltx-2/omninft",
            ["rollout.attention.end=0.2"],
            ["rollout.attention", "end=0.2 lies before start=0.5"],
        ),
        ("ltx-2/omninft", ["credit.attended.fraction=1"], ["credit.attended.fraction"]),
    ],
)
def test_attention_that_is_not_read_or_not_there_is_refused_in_a_line(recipe, overrides, words, thalweg):
    refused(thalweg("train", recipe, *overrides, "--dry-run"), *words)


def test_a_pipeline_whose_attention_is_not_known_is_refused_before_anything_is_written(settings_of, tmp_path):
    overrides = settings_of("wan") | {
        "rewards": ["brightness"],
        "credit": {"kind": "routed", "parts": [[], []], "attended": {}},
        "rollout.attention": {"modules": "attn2"},
    }
    with pytest.raises(UserError, match="'attn2': what attention of that name looks at is not known of Wan"):
        train(load_recipe("diffusion-nft", overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
