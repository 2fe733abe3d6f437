"""RATS: its limits, its gate, and its gradient against finite differences."""

import pytest
import torch
from torch.testing import assert_close

from objectives.nonlinear_field import NonlinearField, paths, slope_by_differences, slope_of
from thalweg.objectives import RewardGradient, TrajectoryShaping
from thalweg.objectives.routes import LastSteps

WAY = torch.tensor([[1.0, 0.6, 0.3, 0.0]] * 3, dtype=torch.float64)
NOISE = torch.randn(3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = paths(NOISE, WAY)


def loss_of(objective, field):
    return lambda: objective.path_loss(field, ROWS)[0].sum()


@pytest.mark.parametrize("substeps", [1, 3])
def test_the_gradient_is_that_of_finite_differences(substeps):
    field = NonlinearField(0.7, teacher=0.4)
    objective = TrajectoryShaping(pull_weight=2.0, gate="open", substeps=substeps, reward_scale=0.3)
    loss = loss_of(objective, field)
    slope = slope_of(loss, field)
    assert abs(slope) > 1e-3
    assert_close(slope, slope_by_differences(loss, field), rtol=1e-6, atol=1e-9)


def test_without_a_reward_a_student_in_the_teachers_steps_is_at_rest_on_the_teacher():
    objective = TrajectoryShaping(pull_weight=1.0, gate="open", substeps=1, reward_scale=0.0)
    field = NonlinearField(0.4, teacher=0.4)
    assert objective.path_loss(field, ROWS)[0].abs().max() < 1e-30
    assert abs(slope_of(loss_of(objective, field), field)) < 1e-15
    moved = NonlinearField(0.5, teacher=0.4)
    assert slope_of(loss_of(objective, moved), moved) > 1e-3


def test_a_student_better_than_its_teacher_climbs_as_if_there_were_none():
    class Proud(NonlinearField):
        def reward(self, latents, wording="{}"):
            return super().reward(latents) + (100.0 if latents.requires_grad else 0.0)

    proud = Proud(0.7, teacher=0.4)
    objective = TrajectoryShaping(pull_weight=5.0, gate="relu")
    alone = RewardGradient(route=LastSteps(num_steps=None))
    assert objective.path_loss(proud, ROWS)[1]["gate"].abs().max() == 0
    assert_close(slope_of(loss_of(objective, proud), proud), slope_of(loss_of(alone, proud), proud))


def test_a_way_cut_before_its_last_steps_climbs_through_them_alone_and_before_them_follows_the_teacher():
    field, start = NonlinearField(0.7, teacher=0.4), NOISE[:, 0]
    objective = TrajectoryShaping(pull_weight=2.0, gate="open", num_steps=1)
    shown = objective.shown(field, ROWS)
    levels = WAY[0].tolist()

    def walked(x, first, last):
        states = []
        for i in range(first, last):
            x = x + (levels[i + 1] - levels[i]) * field.velocity(x, torch.full((3,), levels[i]))
            states.append(x)
        return states

    def missed(states, there):
        return sum((x - y).square().flatten(1).mean(1).sum() for x, y in zip(states, there, strict=True))

    with torch.no_grad():
        cut = walked(start, 0, 2)[-1]

    def before():
        return 2.0 / 3 * missed(walked(start, 0, 2), shown[:2])

    def after():
        (end,) = walked(cut, 2, 3)
        return 2.0 / 3 * missed([end], shown[2:]) - field.reward(end).sum()

    expected = slope_by_differences(before, field) + slope_by_differences(after, field)
    assert_close(slope_of(loss_of(objective, field), field), expected, rtol=1e-6, atol=1e-9)
    uncut = slope_of(loss_of(objective.model_copy(update={"num_steps": 3}), field), field)
    assert abs(uncut - expected) > 1e-3
    assert uncut == slope_of(loss_of(objective.model_copy(update={"num_steps": None}), field), field)


def test_the_gate_is_the_sigmoid_of_how_much_better_the_teacher_is():
    field = NonlinearField(0.7, teacher=0.4)
    objective = TrajectoryShaping(pull_weight=1.0, temperature=0.5)
    _, report = objective.path_loss(field, ROWS)
    better = field.reward(objective.shown(field, ROWS)[-1])
    assert_close(report["gate"], torch.sigmoid((better - report["path_reward"]) / 0.5))


def test_the_teacher_passes_the_students_levels_in_finer_steps():
    class Linear(NonlinearField):
        @staticmethod
        def of(theta, x, sigma):
            return x

    field = Linear(0.0, teacher=0.0)
    shown = TrajectoryShaping(pull_weight=1.0, substeps=2).shown(field, ROWS)
    x = NOISE[:, 0]
    for state, stride in zip(shown, (0.4, 0.3, 0.3), strict=True):
        x = x * (1 - stride / 2) ** 2
        assert_close(state, x)


def test_passes_are_a_gradient_a_step_the_teachers_finer_ones_and_those_made_again():
    student = {"pull_weight": 1.0, "substeps": 3}
    kept = TrajectoryShaping(**student, recompute=False)
    again = TrajectoryShaping(**student, recompute=True)
    assert kept.passes(4) == (4, {kept.teacher: 12, "policy": 0})
    assert again.passes(4) == (4, {again.teacher: 12, "policy": 4})
