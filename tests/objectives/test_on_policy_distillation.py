"""Divergences of single steps from teachers, against closed forms and finite differences."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt, Transitions
from thalweg.flow import CPS, FlowSDE
from thalweg.objectives import OnPolicyDistillation
from thalweg.objectives.on_policy_distillation import Teacher
from thalweg.rollout import AllSteps, Rollout, Root, grow
from thalweg.training.backward import backward

COUNTING = Prompt("two circles", {"task": "counting"})
COLORS = Prompt("a red circle", {"task": "colors", "shift": 2.0})
TWO = OnPolicyDistillation(
    teachers=(Teacher(weights="a", tasks=("counting",)), Teacher(weights="b", weight=3.0))
)


def rows_of(objective, policy, kernel=FlowSDE(), prompts=(COUNTING, COLORS)):  # noqa: B008  (frozen)
    rollout = Rollout(plan=AllSteps(), group_size=2, steps=4, kernel=kernel)
    roots = [Root(s, g, s * 2 + g, s) for s in range(len(prompts)) for g in range(2)]
    forest = grow(policy, prompts, roots, rollout, seed=0, iteration=0)
    rows = objective.experience(forest, forest.advantages(torch.zeros(len(roots), 1)), seed=0, iteration=0)
    columns = {n: c.double() if c.is_floating_point() else c for n, c in vars(rows).items() if c is not None}
    return Transitions(**columns), forest.condition


def taught(linear_policy, **shifts):
    """A policy in float64 and teachers whose velocity is higher by so much."""
    policy = linear_policy((3,), torch.float64)
    for name, shift in shifts.items():
        policy.weights.add(name)
        policy.weights.tensors(name)["bias"] += shift
    return policy


def gradient(objective, policy, rows, condition):
    policy.bias.grad = None
    report = backward(objective, policy, rows, condition, 8, 1.0)
    return policy.bias.grad, report


@pytest.mark.parametrize("kernel", [FlowSDE(), CPS()], ids=["flow_sde", "cps"])
def test_the_gradient_is_that_of_the_means_over_the_variance(kernel, linear_policy):
    policy = taught(linear_policy, a=0.5, b=-0.25)
    rows, condition = rows_of(TWO, policy, kernel)
    got, report = gradient(TWO, policy, rows, condition)
    J = rows.sigma - rows.sigma_next + (rows.sigma_next - rows.k) * (1 - rows.sigma)
    first = rows.prompt_slot == 0
    missed = torch.where(first, -0.5, 0.25).double()  # v_student - v_teacher
    weight = torch.where(first, 1.0, 3.0).double()
    # L = w (J missed)² / (2 s²); of each of the 3 elements, the mean over them has a third.
    assert_close(got, (weight * J**2 * missed / rows.std**2).sum().expand(3) / 3)
    expected = (weight * J**2 * missed**2 / (2 * rows.std**2)).sum()
    assert report.totals["loss"] == pytest.approx(float(expected))


def test_it_is_that_of_finite_differences(linear_policy):
    objective = TWO.model_copy(update={"anchor_weight": 0.3, "anchor": "c"})
    policy = taught(linear_policy, a=0.5, b=-0.25, c=1.0)
    rows, condition = rows_of(objective, policy)
    got, _ = gradient(objective, policy, rows, condition)
    values = []
    for move in (1e-5, -2e-5):
        with torch.no_grad():
            policy.bias[1] += move
        values.append(gradient(objective, policy, rows, condition)[1].totals["loss"])
    assert float(got[1]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(linear_policy):
    policy = taught(linear_policy, a=0.0, b=0.0)
    got, report = gradient(TWO, policy, *rows_of(TWO, policy))
    assert got.abs().max() == 0 and report.totals["loss"] == 0


def test_each_prompt_listens_to_its_own_teacher_alone(linear_policy):
    policy = taught(linear_policy, a=0.5, b=0.0)
    rows, condition = rows_of(TWO, policy)
    first = rows.prompt_slot == 0
    assert gradient(TWO, policy, rows.index(first), condition)[0].abs().max() > 1e-3
    assert gradient(TWO, policy, rows.index(~first), condition)[0].abs().max() == 0
    both = replace(rows, teacher=torch.zeros_like(rows.teacher))
    assert gradient(TWO, policy, both.index(~first), condition)[0].abs().max() > 1e-3


def test_no_gradient_reaches_a_teacher_or_an_anchor(linear_policy):
    objective = TWO.model_copy(update={"anchor_weight": 0.3, "anchor": "c"})
    rows, _ = rows_of(objective, taught(linear_policy))
    velocity = torch.zeros(len(rows), 3, dtype=torch.float64, requires_grad=True)
    anchors = {name: torch.ones(len(rows), 3, dtype=torch.float64) for name in objective.anchors}
    assert objective.anchors == ("a", "b", "c")
    terms, _ = objective.loss(objective.measure(rows, rows.x, velocity, anchors), rows)
    terms.sum().backward()
    assert velocity.grad.abs().max() > 0 and all(not a.requires_grad for a in anchors.values())


def test_a_prompt_that_nobody_teaches_is_named(linear_policy):
    objective = OnPolicyDistillation(teachers=(Teacher(weights="a", tasks=("counting",)),))
    with pytest.raises(UserError, match="nobody teaches the task 'colors' of prompt 'a red circle'"):
        rows_of(objective, taught(linear_policy, a=0.0))


def test_teachers_come_in_an_order_in_which_all_are_asked():
    with pytest.raises(ValueError, match="'a' takes all prompts"):
        OnPolicyDistillation(teachers=(Teacher(weights="a"), Teacher(weights="b")))
    with pytest.raises(ValueError, match="teachers: empty"):
        OnPolicyDistillation(teachers=())
