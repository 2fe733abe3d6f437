"""Weights that learn the samples, teachers that come from files, and guidance of single sets."""

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes
from thalweg.core.values import Condition, Prompt
from thalweg.models import MiniatureModel
from thalweg.objectives import Forward
from thalweg.objectives.forward import Pull
from thalweg.objectives.forward_rows import samples
from thalweg.objectives.rules import Weighted
from thalweg.objectives.sigma_draw import Stratified
from thalweg.rollout import Deterministic, Rollout, Root, grow
from thalweg.training.backward import measure
from thalweg.training.companions import fit_companions, make_optimizers
from thalweg.training.loop import train
from thalweg.training.policy import load_policy
from thalweg.training.recipe.load import load_recipe
from thalweg.training.weight_rules import WeightRule, add_named
from training.small_runs import small, trains


def fitted(linear_policy, updates, num_samples=2, **changes):
    """A policy whose fake learnt from a few samples, and what was reported."""
    recipe = load_recipe("dmd", {"weights.fake.update.optim.updates_per_iteration": updates, **changes})
    policy = linear_policy((2,))
    add_named(policy.weights, recipe.weights)
    rollout = Rollout(plan=Deterministic(), group_size=num_samples, steps=3)
    roots = [Root(0, g, g, 0) for g in range(num_samples)]
    forest = grow(policy, [Prompt("a", {"shift": 1.0})], roots, rollout, seed=0, iteration=0)
    optimizers = make_optimizers(policy.weights, recipe)
    report = fit_companions(recipe, policy, optimizers, forest, Processes(), 0)
    return policy, forest, optimizers, report


@pytest.mark.parametrize("updates", [1, 5])
def test_the_fake_alone_moves_and_as_often_as_the_recipe_says(updates, linear_policy):
    policy, _, optimizers, report = fitted(linear_policy, updates)
    assert policy.weights.tensors("policy")["bias"].abs().max() == 0
    assert policy.weights.tensors("teacher")["bias"].abs().max() == 0
    assert policy.weights.tensors("fake")["bias"].abs().max() > 0
    (state,) = optimizers["fake"].state.values()
    assert int(state["step"]) == updates
    assert not optimizers["policy"].state
    assert policy.bias.grad is None
    assert report["fit/fake"] > 0
    assert policy.passes.backwards == 2 * updates


def test_a_fake_that_takes_large_steps_arrives_at_the_error_of_its_samples(linear_policy):
    # Of one sample x0 and ε, the bias that fits is the mean of ε - x0 - v; Adam's first step has size lr.
    policy, *_ = fitted(linear_policy, 1, **{"weights.fake.update.optim.learning_rate": 0.25})
    assert_close(policy.weights.tensors("fake")["bias"].abs(), torch.full((2,), 0.25), rtol=1e-4, atol=1e-5)


def test_the_error_is_that_of_the_samples_under_fresh_noise(linear_policy):
    policy, forest, _, report = fitted(linear_policy, 1)
    ones = forest.advantages(torch.ones(2, 1))
    rows = samples(forest, ones, Stratified(num_sigmas=1), seed=0, iteration=0)
    sigma = rows.sigma[:, None]
    x = (1 - sigma) * rows.x0 + sigma * rows.noise
    velocity = policy.velocity(x, rows.sigma, forest.condition.repeat(2)).detach()
    assert report["fit/fake"] == pytest.approx(
        float((velocity - rows.noise + rows.x0).square().mean()), rel=1e-5
    )


@pytest.mark.parametrize("num_sigmas", [1, 2])
def test_every_step_of_the_fake_sees_noise_levels_of_all_strata(num_sigmas, linear_policy, monkeypatch):
    seen, velocity = list[torch.Tensor](), type(linear_policy((2,))).velocity

    def watched(self, x, sigma, condition):
        seen.append(sigma)
        return velocity(self, x, sigma, condition)

    monkeypatch.setattr(type(linear_policy((2,))), "velocity", watched)
    levels = {"num_sigmas": num_sigmas, "sigma_min": 0.0, "sigma_max": 1.0}
    fitted(linear_policy, 5, num_samples=10, **{"weights.fake.update.sigmas": levels})
    turns = seen[-5:]  # after those of the rollout
    strata = 5 * num_sigmas
    for sigmas in turns:
        # 10 samples, each at as many of its levels as a step takes: all strata equally often.
        assert torch.bincount((sigmas * strata).long(), minlength=strata).tolist() == [2] * strata
    assert len(torch.cat(turns).unique()) == 10 * strata


def test_a_guided_set_is_the_model_under_that_guidance(tiny_policy, prompts):
    plain, guided = tiny_policy(), tiny_policy(MiniatureModel(guidance_scale=3.0))
    add_named(plain.weights, {"teacher": WeightRule(update="frozen", guidance_scale=3.0)})
    condition = plain.encode(prompts)
    x, sigma = torch.randn(4, *plain.latent_shape), torch.full((4,), 0.5)
    with torch.no_grad():
        before = plain.passes.evaluations
        with plain.weights.use("teacher"):
            found = plain.velocity(x, sigma, condition)
        assert plain.passes.evaluations - before == 8
        assert_close(found, guided.velocity(x, sigma, condition))
        assert not torch.allclose(found, plain.velocity(x, sigma, condition))
        assert plain.passes.evaluations - before == 12


def teacher_run(out, **changes):
    return train(small("flow-opd", {"iterations": 1, "optim.learning_rate": 0.01, **changes}), out).path


def with_teacher(source):
    return small(
        "flow-opd",
        {
            "iterations": 1,
            "weights": {
                "teacher_one": {"update": {"kind": "frozen"}},
                "teacher_two": {"update": {"kind": "frozen"}, "init": str(source)},
                "evaluation": {"update": {"kind": "copy"}},
            },
        },
    )


def test_a_teacher_starts_from_the_run_it_is_given(tiny_world, tmp_path):
    source = teacher_run(tmp_path / "teacher")
    policy, taught = load_policy(with_teacher(source)), load_policy(small("flow-opd"))
    given = policy.weights.tensors("teacher_two")
    assert any(not torch.equal(given[n], t) for n, t in taught.weights.tensors("policy").items())
    for name, tensor in policy.weights.tensors("policy").items():
        assert torch.equal(tensor, taught.weights.tensors("policy")[name])
    (line,) = trains(train(with_teacher(source), tmp_path / "student"))
    assert line["teacher_kl"] > 0 and line["grad_norm"] > 0


def test_a_teacher_of_another_network_is_one_clear_line(tiny_world, tmp_path):
    source = teacher_run(tmp_path / "teacher", **{"model.lora": {"rank": 2}})
    with pytest.raises(
        UserError, match=r"weights.teacher_two.init: .*holds other parameters than this model"
    ):
        load_policy(with_teacher(source))


def test_a_teacher_of_other_noise_levels_is_one_clear_line(tiny_world, tmp_path):
    source = teacher_run(tmp_path / "teacher", **{"rollout.steps": 3})
    with pytest.raises(
        UserError, match=r"weights.teacher_two.init=.*took its steps at the noise levels \[1,"
    ):
        load_policy(with_teacher(source))


def test_a_teacher_that_is_nowhere_is_one_clear_line(tiny_world, tmp_path):
    with pytest.raises(UserError, match=r"weights.teacher_two.init: '.*nowhere': no weights there"):
        load_policy(with_teacher(tmp_path / "nowhere"))


def test_a_pull_to_a_guided_reference_is_to_its_guided_velocity(tiny_policy, prompts):
    policy = tiny_policy()
    rule = WeightRule.model_validate({"update": "frozen", "guidance_scale": 4.5})
    add_named(policy.weights, {"reference": rule})
    objective = Forward(rule=Weighted(), pulls=(Pull(to="reference", weight=1.0),))
    roots = [Root(0, g, g, 0) for g in range(2)]
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=3)
    forest = grow(policy, prompts[:1], roots, rollout, seed=0, iteration=0)
    rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
    before = policy.passes.evaluations
    scalars = measure(objective, policy, rows, forest.condition)
    assert policy.passes.evaluations - before == 3 * len(rows)  # two for the guided one
    x, sigma = objective.inputs(rows)
    here = forest.condition.index(rows.condition)
    nothing = Condition({"tokens": torch.zeros_like(here.tensors["tokens"])})
    with torch.no_grad():
        plain, blank = policy.velocity(x, sigma, here), policy.velocity(x, sigma, nothing)
    guided = blank + 4.5 * (plain - blank)
    expected = (plain - guided).square().flatten(1).mean(1)
    assert expected.min() > 1e-6
    assert_close(scalars["distance/reference"].detach(), expected, rtol=1e-3, atol=1e-6)
