"""Recipes over finished samples that cannot be: one clear line each."""

import pytest

from cli.test_bad_inputs import refused

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
    "a path of given samples": (
        "diffusion-apo-half-online",
        ["objective.noise=path"],
        "objective.noise='path': the samples of rollout.given have no path",
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
