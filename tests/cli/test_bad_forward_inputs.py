"""Recipes over finished samples that cannot be: one clear line each."""

from dataclasses import replace

import pytest

from cli.test_bad_inputs import refused
from thalweg.training.contrast import is_said
from thalweg.training.data.prompts import load_prompts
from thalweg.worlds import WORLDS
from training.small_runs import metrics_of, saved_state, trains

PROBLEMS = {
    "more given than samples": (
        "realalign",
        ["rollout.group_size=1"],
        "given=['right', 'spoiled']: more than group_size=1",
    ),
    "given samples of another kind": ("realalign", ["rollout.given=[wrong]"], "rollout.given", "'right'"),
    "given samples for drawn steps": (
        "flow-grpo",
        ["rollout.given=[right]"],
        "given samples have no path",
        "use the plan deterministic",
    ),
    "given samples for a reward gradient": (
        "refl",
        ["rollout.given=[right]"],
        "objective 'reward_gradient' learns from the model's own steps",
    ),
    "places that nobody judges": (
        "creflow",
        ["rewards=[brightness]"],
        "'blame' asks the judge of a world where a sample fails",
        "scenes",
    ),
    "given pictures for a model with a sound": (
        "realalign",
        ["model={kind: sounding}"],
        "the model 'sounding' does not take them",
    ),
    "places of pictures with a sound": (
        "creflow",
        ["rewards=[scenes]", "model={kind: sounding}"],
        "which the model 'sounding' does not make alone",
    ),
    "places for a group": (
        "creflow",
        [
            "rewards=[scenes]",
            "selection.drop_zero=false",
            "objective.rule={kind: centred}",
            "objective.corrective_weight=0",
        ],
        "whose rule looks at samples by themselves",
    ),
    "a part whose reward is not there": (
        "omninft",
        ["rewards=[brightness]", "credit.parts=[[brightnes], [brightness]]"],
        "no reward is called 'brightnes'",
        "mean 'brightness'?",
    ),
    "corrections that nobody makes": (
        "diffusion-nft",
        ["objective.corrective_weight=0.5"],
        "credit 'group' corrects no sample",
    ),
    "corrections over several levels": (
        "creflow",
        ["rewards=[scenes]", "objective.rule={kind: ratio, spans: sample}"],
        "corrected rows stand by themselves",
    ),
    "a budget that does not add up": (
        "rsm-zeroth-order",
        ["rollout.plan.branches=[2, 2]", "rollout.group_size=24"],
        "adds up to 4, but a seed group has 12 samples",
    ),
    "a hinge on another ratio": (
        "rsm-zeroth-order",
        ["objective.ratio=guard", "rollout.group_size=24"],
        "log-ratio alone",
    ),
    "more states than steps": (
        "rsm-first-order",
        ["objective.num_steps=9"],
        "objective.num_steps=9: the rollout has only 8 steps",
    ),
    "a slope of a reward without one": (
        "rsm-first-order",
        ["rewards=[jpeg_size]"],
        "'jpeg_size' has no gradient",
    ),
    "a guide of one target": ("gdmd", ["objective.guide.num_targets=1"], "objective.guide.num_targets"),
    "a norm without a ratio": ("tmpo", ["objective.form=kl"], "ratio_norm weighs clipped ratios"),
    "a part that hears nothing": (
        "omninft",
        ["rewards=[brightness, loudness]", "credit.parts=[[brightness, loudness], []]"],
        "credit.parts: part 2 hears no reward",
        "leave one out of all parts",
    ),
    "a group without its zeros": (
        "dgpo",
        ["selection.drop_zero=true"],
        "selection.drop_zero",
        "those of advantage 0 too; give false",
    ),
    "a group without its middle": ("dgpo", ["selection.best_of=2"], "selection.best_of", "give none"),
    "a trust region that gives way": (
        "advantage-flow",
        ["objective.pulls=[{to: old, weight: 0.5, space: surrogate}]"],
        "objective.pulls: a weight of 0.5 in all, against advantages from -1 to 1",
        "unbounded below",
    ),
    "a trust region as weak as what it holds": (
        "advantage-flow",
        [
            "objective.advantage={limit: 2, scale: 0.5}",
            "objective.pulls=[{to: old, weight: 0.75, space: surrogate}, "
            "{to: reference, weight: 0.25, space: surrogate}]",
        ],
        "a weight of 1 in all, against advantages from -1 to 1",
    ),
    "a pull that bad samples turn round": (
        "advantage-flow",
        ["objective.pulls=[{to: old, weight: 1.5, advantage_weight: 1, space: surrogate}]"],
        "a weight of 1.5 in all",
    ),
    "an anchor for a group": (
        "dgpo",
        ["objective.rule.imitation_weight=1"],
        "imitation_weight acts on pairs alone",
    ),
}


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"), [(p[0], p[1], p[2:]) for p in PROBLEMS.values()], ids=PROBLEMS
)
def test_a_recipe_that_cannot_be_is_refused(recipe, overrides, words, train, tmp_path):
    refused(train(recipe, *overrides, "--out", tmp_path / "run"), *words)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.pulls=[{to: old, weight: 1.01, space: surrogate}]"],
        ["objective.advantage={limit: 1, side: positive}", "objective.pulls=[]"],
        ["objective.pulls=[{to: old, weight: 0.1}]"],  # in other units: what it holds is not known
        ["objective.rule={kind: weighted, old: old}", "objective.pulls=[]"],  # the ratio ends the push
        # 1 + u = 0 takes the advantage off the square.
        ["objective.pulls=[{to: old, weight: 0.1, advantage_weight: -1, space: surrogate}]"],
    ],
)
def test_weighted_regression_that_is_bounded_is_not_refused(overrides, thalweg):
    outcome = thalweg("train", "advantage-flow", *overrides, "--dry-run")
    assert outcome.code == 0, outcome.err


def warnings_of(outcome):
    return [line for line in outcome.err.splitlines() if " warning: " in line]


EQUAL = ["rewards=[{kind: world, world: scenes, weight: 0}]"]


@pytest.mark.parametrize(
    ("recipe", "more", "updates", "noisier"),
    [
        ("online-dpo", [], 0, False),
        ("flow-grpo", [], 0, True),
        ("dgpo", [], 1, False),
    ],
)
def test_rewards_that_tell_no_samples_apart_are_told_in_one_line(
    recipe, more, updates, noisier, train, tmp_path
):
    outcome = train(recipe, *EQUAL, *more, "iterations=3", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    (line,) = warnings_of(outcome)
    prompt = line.split("'")[1]
    assert f"all samples of '{prompt}' earn the same, 0, and no prompt has better and worse samples" in line
    assert prompt in {p.text for p in load_prompts("training", "scenes")}
    assert "raise rollout.group_size" in line
    assert ("rollout.kernel.noise_level" in line) == noisier
    assert [of["updates"] for of in trains(tmp_path / "run")] == [updates] * 3
    (told,) = [of for of in metrics_of(tmp_path / "run") if of["event"] == "warning"]
    assert (told["iteration"], told["in_a_row"]) == (1, 1)
    assert saved_state(tmp_path / "run")["equal_in_a_row"] == 3
    hint = (tmp_path / "run" / "report.html").read_text().split("zero_variance_fraction")[1:]
    assert any("raise" in text for text in hint)
    assert any("noise_level" in text.split("<li>")[0] for text in hint) == noisier


def test_a_given_pair_without_a_preference_is_named(train, tmp_path, tiny_world, monkeypatch):
    monkeypatch.setitem(WORLDS, "scenes", replace(WORLDS["scenes"], spoil=WORLDS["scenes"].draw))
    outcome = train("realalign", "rollout.group_size=2", "iterations=2", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    (line,) = warnings_of(outcome)
    prompt = line.split("'")[1]
    assert f"the given samples of '{prompt}' earn the same" in line
    assert prompt in {p.text for p in load_prompts("training", "scenes")}
    assert "(and those of 1 more)" in line  # of two prompts
    assert "tells them apart" in line and "group_size" not in line


def test_prompts_that_no_picture_can_be_drawn_for_are_refused(train, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red square\n")
    given = ["rollout.group_size=2", f"data.prompts={tmp_path / 'prompts.txt'}"]
    refused(train("realalign", *given, "--out", tmp_path / "run"), "data.prompts", "'a red square' has no")


def test_rewards_that_tell_samples_apart_earn_no_warning(train, tmp_path):
    outcome = train("online-dpo", "iterations=1", "--out", tmp_path / "run")
    assert outcome.code == 0 and warnings_of(outcome) == []
    assert saved_state(tmp_path / "run")["equal_in_a_row"] == 0


def test_a_warning_is_said_again_after_ten_and_a_hundred_iterations():
    assert [n for n in range(1, 2001) if is_said(n)] == [1, 10, 100, 1000]
