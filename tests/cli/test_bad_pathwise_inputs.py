"""Pathwise and distilling recipes that cannot be: one clear line each."""

import pytest

from cli.test_bad_inputs import refused

PROBLEMS = {
    "a reward without a gradient": (
        "refl",
        ["rewards=[jpeg_size]"],
        "rewards: 'jpeg_size' has no gradient",
        "'reward_gradient' learns from nothing else",
        "{kind: scorer}",
    ),
    "a reward without a gradient, for adjoints": (
        "adjoint-matching",
        ["rewards=[scenes]"],
        "has no gradient",
        "'adjoint_matching'",
    ),
    "drawn steps for a flow": (
        "draft",
        ["rollout.plan={kind: all_steps}", "rollout.kernel={kind: flow_sde}"],
        "'reward_gradient' follows the flow",
        "use the plan deterministic",
    ),
    "a solver that is not euler": (
        "draft",
        ["rollout.solver={kind: dpm_solver}"],
        "'dpm_solver'",
        "use euler",
    ),
    "more steps than there are": (
        "draft",
        ["objective.route.num_steps=9"],
        "objective.route.num_steps=9: the rollout has only 8 steps",
    ),
    "copies of many steps": (
        "draft-lv",
        ["objective.route.num_steps=2"],
        "copies=2 are noised to the level of the last step",
    ),
    "two leaps over one step": ("leap-align", ["rollout.steps=1"], "two leaps start from two steps"),
    "zeros dropped": ("srpo", ["selection.drop_zero=true"], "selection.drop_zero", "give false"),
    "unknown route": ("refl", ["objective.route.kind=one_stp"], "objective.route.kind", "mean 'one_step'?"),
    "a key of another route": ("refl", ["objective.route.copies=2"], "objective.route.copies", "OneStep"),
    "noise that is remembered": (
        "adjoint-matching",
        ["rollout.kernel={kind: flow_sde}"],
        "'flow_sde' leaves a correlation of 0.",
        "use {kind: ddim, noise_level: 1}",
    ),
    "steps of a flow for memoryless ones": (
        "adjoint-matching",
        ["rollout.plan={kind: deterministic}", "rollout.kernel=null"],
        "needs every step but the last drawn",
    ),
    "more looks than drawn steps": ("adjoint-matching", ["objective.num_steps=8"], "draws only 7 steps"),
    "more adjoints than steps": (
        "adjoint-matching-ode",
        ["objective.num_steps=9"],
        "objective.num_steps=9: the rollout has only 8 steps",
    ),
    "a way cut before it begins": (
        "rats",
        ["objective.num_steps=5"],
        "objective.num_steps=5: the rollout has only 4 steps",
    ),
    "a fake that does not learn": (
        "dmd",
        ["weights.fake={update: frozen}"],
        "weights.fake.update",
        "use {kind: trained",
    ),
    "a teacher that learns": (
        "dmd",
        ["weights.teacher={update: {kind: trained, optim: {learning_rate: 0.1}}}"],
        "a teacher does not learn",
    ),
    "a fake that is nowhere": ("dmd", ["objective.fake=fke"], "'fke'", "mean 'fake'?"),
    "one step and diversity": (
        "dp-dmd",
        ["rollout.steps=1"],
        "the first step is not matched; give 2 or more",
    ),
    "longer than the teacher": (
        "dp-dmd",
        ["objective.diversity.teacher_steps=4"],
        "num_steps=5: the teacher takes only 4 steps",
    ),
    "a flow without densities": (
        "flow-opd",
        ["rollout.plan={kind: deterministic}", "rollout.kernel=null"],
        "'on_policy_distillation' needs the densities",
    ),
    "a task that nobody teaches": (
        "flow-opd",
        ["objective.teachers=[{weights: teacher_two, tasks: [astronomy]}]"],
        "nobody teaches the task",
    ),
    "a teacher that is nowhere": (
        "flow-opd",
        ["weights.teacher_two.init=nowhere"],
        "weights.teacher_two.init: 'nowhere': no weights there",
    ),
}


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"), [(p[0], p[1], p[2:]) for p in PROBLEMS.values()], ids=PROBLEMS
)
def test_a_recipe_that_cannot_be_is_refused(recipe, overrides, words, train, tmp_path):
    refused(train(recipe, *overrides, "--out", tmp_path / "run"), *words)
