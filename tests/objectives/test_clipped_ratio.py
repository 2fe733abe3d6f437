from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.core.values import Prompt, Transitions
from thalweg.credit.step_weight import step_weights
from thalweg.flow import CPS, DanceSDE, DPMSolverSDE, FlowSDE, Precise
from thalweg.objectives import ClippedRatio
from thalweg.rollout import AllSteps, Rollout, Root, grow

KERNELS = [FlowSDE(), DanceSDE(), CPS(noise_level=0.5), Precise(), DPMSolverSDE()]


def rows_of(policy, kernel=FlowSDE(), *, advantages=None) -> Transitions:  # noqa: B008  (frozen)
    """All trained steps of 6 samples, in float64."""
    rollout = Rollout(plan=AllSteps(), group_size=6, steps=5, kernel=kernel)
    roots = [Root(0, group, group, 0) for group in range(6)]
    forest = grow(policy, [Prompt("")], roots, rollout, seed=0, iteration=0)
    given = torch.linspace(-2, 3, 6)[:, None] if advantages is None else advantages
    rows = ClippedRatio().experience(forest, forest.advantages(given), seed=0, iteration=0)
    columns = {n: c.double() if c.is_floating_point() else c for n, c in vars(rows).items() if c is not None}
    return Transitions(**columns)


def exact(rows: Transitions) -> Transitions:
    """The rows with log-probs of their own velocity in float64, so that the ratio is 1 to the last digit."""
    scalars = ClippedRatio().measure(rows, rows.x, velocity_of(rows), {})
    return replace(rows, old_log_prob=scalars["log_prob"].detach())


def velocity_of(rows: Transitions) -> torch.Tensor:
    """The exact flow of N(0, 1/4)."""
    sigma = rows.sigma.view(-1, *[1] * (rows.x.ndim - 1))
    return (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2) * rows.x


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_first_gradient_is_the_published_one(kernel, linear_policy):
    # A J z / (s d) an element, for d = 12 elements, in either sign of A.
    rows = exact(rows_of(linear_policy((3, 2, 2)), kernel))
    velocity = velocity_of(rows).requires_grad_()
    objective = ClippedRatio()
    terms, report = objective.loss(objective.measure(rows, rows.x, velocity, {}), rows)
    terms.sum().backward()
    sigma, sigma_next, k, s = (c.view(-1, 1, 1, 1) for c in (rows.sigma, rows.sigma_next, rows.k, rows.std))
    J = (1 - sigma_next) * sigma - k * (1 - sigma)
    v = velocity.detach()
    z = (rows.x_next - (1 - sigma_next) * (rows.x - sigma * v) - k * (rows.x + (1 - sigma) * v)) / s
    assert_close(velocity.grad, rows.advantages.view(-1, 1, 1, 1) * J * z / (s * 12), atol=1e-9, rtol=1e-9)
    assert_close(terms, -rows.advantages.flatten(), atol=1e-12, rtol=0)
    assert report["clip_fraction"].sum() == 0 and report["log_ratio"].abs().max() == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_ratio_is_exactly_one_when_stored_steps_are_scored_again(kernel, linear_policy):
    policy = linear_policy((3, 2, 2))
    rollout = Rollout(plan=AllSteps(), group_size=6, steps=5, kernel=kernel)
    roots = [Root(0, group, group, 0) for group in range(6)]
    forest = grow(policy, [Prompt("")], roots, rollout, seed=0, iteration=0)
    objective = ClippedRatio()
    rows = objective.experience(forest, forest.advantages(torch.ones(6, 1)), seed=0, iteration=0)
    x, sigma = objective.inputs(rows)
    velocity = policy.velocity(x, sigma, forest.condition.index(rows.condition))
    terms, report = objective.loss(objective.measure(rows, x, velocity, {}), rows)
    assert torch.equal(report["log_ratio"], torch.zeros(24))
    assert torch.equal(terms, -torch.ones(24)) and report["clip_fraction"].sum() == 0


def test_with_noise_weights_the_gradient_of_a_step_is_proportional_to_J(linear_policy):
    rows = exact(rows_of(linear_policy((4,)), advantages=torch.ones(6, 1)))
    rows = replace(rows, weight=step_weights("noise", rows, Processes()))
    velocity, objective = velocity_of(rows).requires_grad_(), ClippedRatio()
    objective.loss(objective.measure(rows, rows.x, velocity, {}), rows)[0].sum().backward()
    J = (1 - rows.sigma_next) * rows.sigma - rows.k * (1 - rows.sigma)
    mean = (1 - rows.sigma_next + rows.k)[:, None] * rows.x - J[:, None] * velocity.detach()
    z = (rows.x_next - mean) / rows.std[:, None]
    mean_std = torch.stack([rows.std[rows.step == j][0] for j in range(4)]).mean()
    assert_close(velocity.grad / (J[:, None] * z), torch.full_like(z, 1 / (4 * mean_std.item())))


def test_the_kl_is_added_with_its_weight_and_rows_weigh_the_whole_term(linear_policy):
    rows = exact(rows_of(linear_policy((4,))))
    rows = replace(rows, weight=torch.linspace(0, 2, len(rows), dtype=torch.float64))
    velocity = velocity_of(rows)
    objective = ClippedRatio(kl_weight=0.3, kl="velocity", reference="base")
    assert objective.anchors == ("base",)
    scalars = objective.measure(rows, rows.x, velocity, {"base": velocity + 2})
    terms, report = objective.loss(scalars, rows)
    assert_close(terms, (-rows.advantages.flatten() + 0.3 * 4) * rows.weight)
    assert_close(report["kl"], torch.full((len(rows),), 4.0, dtype=torch.float64))


def test_without_a_kl_weight_no_reference_is_asked_for(linear_policy):
    objective = ClippedRatio(kl_weight=0.0)
    assert objective.anchors == ()
    rows = rows_of(linear_policy((4,)))
    assert set(objective.measure(rows, rows.x, velocity_of(rows), {})) == {"log_prob"}
