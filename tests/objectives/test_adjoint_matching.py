"""Adjoints and their targets against the closed forms of Gaussian data, and gradients against differences.

Data N(0, 1), reward k x0, D = (1-σ)² + σ²: the lean adjoint is -k (1-σ)/D on every path, and v_ref - σ k/D is
the flow of the tilted density N(k, 1).
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from objectives.nonlinear_field import NonlinearField, paths, slope_by_differences, slope_of
from thalweg.flow import CPS, DDIM, Euler, FlowSDE, Uniform
from thalweg.objectives import AdjointMatching, AdjointMatchingODE, RewardGradient
from thalweg.objectives.adjoint import adjoints, memory_of_noise, reward_slope
from thalweg.objectives.routes import OneStep
from thalweg.rewards.pixels import Brightness
from thalweg.rollout import AllSteps, Deterministic, Rollout, Root, grow
from thalweg.training.backward import backward
from thalweg.training.pathwise import judge_of

K = 0.7
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def spread(sigma):
    return (1 - sigma) ** 2 + sigma**2


class Gaussian(NonlinearField):
    """The exact flow of data N(0, 1) under every name, and reward k x0."""

    @staticmethod
    def of(theta, x, sigma):
        level = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
        return x * (2 * level - 1) / spread(level) + theta

    def reward(self, latents, wording="{}"):
        return K * latents.flatten(1).sum(1)


def chain(field, kernel, steps, count=4):
    """Rows drawn by the kernel, the last step by the ODE."""
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x, states = normal(count, 1), []
    ks, stds = [torch.ones(count, dtype=torch.float64)], [torch.zeros(count, dtype=torch.float64)]
    for i, (at, to) in enumerate(pairwise(sigmas)):
        states.append(x)
        velocity = field.velocity_of("reference", x, at.expand(count))
        if i == steps - 1:
            x, k, std = x + (to - at) * velocity, to.expand(count), torch.zeros(count, dtype=torch.float64)
        else:
            step = kernel.transition(x, velocity, at, to)
            x, k, std = step.sample(normal(count, 1)), step.k, step.std
        ks.append(k)
        stds.append(std)
    rows = paths(torch.stack([*states, x], 1), sigmas.expand(count, -1))
    return replace(rows, k=torch.stack(ks, 1), std=torch.stack(stds, 1))


def test_the_lean_adjoint_of_gaussian_data_is_the_same_on_every_path():
    field = Gaussian(0.0, reference=0.0)
    rows = chain(field, DDIM(), 400)
    found = torch.stack(adjoints(field, "reference", rows, torch.full((4, 1), -K)), 1)[..., 0]
    sigma = rows.sigmas[:, 1:]
    assert_close(found, -K * (1 - sigma) / spread(sigma), rtol=0, atol=5e-3)


def test_adjoint_matching_is_at_rest_on_the_flow_of_the_tilted_density():
    rows = replace(
        chain(Gaussian(0.0, reference=0.0), DDIM(), 400), chosen=torch.tensor([[100, 200, 300]] * 4)
    )

    class Shifted(Gaussian):
        """The reference plus a share θ of the exact shift of the velocity."""

        def velocity(self, x, sigma, *, recompute=False):
            return self.of(torch.zeros(()), x, sigma) - self.theta * (K * sigma / spread(sigma))[:, None]

    objective, slopes = AdjointMatching(reward_weight=1.0, num_steps=3), []
    for share in (0.0, 0.5, 1.0):
        field = Shifted(share, reference=0.0)
        slopes.append(slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field))  # noqa: B023
    # The loss is quadratic in θ, and its minimum lies at 1.
    assert abs(slopes[2]) < 0.02 * abs(slopes[0])
    assert slopes[1] == pytest.approx(slopes[0] / 2, rel=0.02)


@pytest.mark.parametrize("name", ["adjoint_matching", "adjoint_matching_ode", "lean"])
def test_the_gradient_is_that_of_finite_differences(name):
    field = NonlinearField(0.7, reference=0.5, policy=0.7)
    sigmas = torch.tensor([[1.0, 0.7, 0.4, 0.2, 0.0]] * 2, dtype=torch.float64)
    rows = paths(normal(2, 5, 3), sigmas)
    if name == "adjoint_matching":
        k, std = sigmas * 0.8, sigmas * 0.6
        rows = replace(rows, k=k, std=std, chosen=torch.tensor([[0, 2], [1, 2]]))
        objective = AdjointMatching(reward_weight=2.0, num_steps=2)
    else:
        objective = AdjointMatchingODE(cost=3.0, num_steps=4, lean=name == "lean")

    def loss():
        return objective.path_loss(field, rows)[0].sum()

    slope = slope_of(loss, field)
    assert abs(slope) > 1e-3
    assert_close(slope, slope_by_differences(loss, field), rtol=1e-6, atol=1e-8)


def test_the_adjoint_of_the_flow_is_the_slope_of_the_unrolled_solver():
    field = NonlinearField(0.7, policy=0.7)
    sigmas = torch.linspace(1, 0, 6, dtype=torch.float64)
    x = normal(2, 3).requires_grad_()
    states = [x]
    for at, to in pairwise(sigmas):
        velocity = field.of(field.named["policy"], states[-1], at.expand(2))
        states.append(states[-1] + (to - at) * velocity)
    slopes = torch.autograd.grad(field.reward(states[-1]).sum(), states[1:], retain_graph=True)
    rows = paths(torch.stack([s.detach() for s in states], 1), sigmas.expand(2, -1))
    _, at_data = reward_slope(field, rows.states[:, -1])
    assert_close(adjoints(field, "policy", rows, at_data), list(slopes))


def test_the_target_of_the_ode_is_the_adjoint_over_the_cost():
    # v_ref = 0: x0 = x, so dr/dx = k everywhere and the loss is <(v + k/c)²>.
    class Still(Gaussian):
        @staticmethod
        def of(theta, x, sigma):
            return theta + 0 * x

    rows = paths(normal(2, 4, 3), torch.tensor([[1.0, 0.6, 0.3, 0.0]] * 2, dtype=torch.float64))
    for theta in (0.0, -K / 2.0, 1.0):
        field = Still(theta, reference=0.0, policy=theta)
        terms, report = AdjointMatchingODE(cost=2.0).path_loss(field, rows)
        assert_close(terms.detach(), torch.full((2,), (theta + K / 2.0) ** 2, dtype=torch.float64))
        assert_close(report["adjoint_size"], torch.full((2,), K, dtype=torch.float64))


def test_at_the_reference_adjoint_matching_costs_the_squared_adjoint_times_the_noise():
    # g² a² an instant, g² = 2σ/(1-σ); each look counts its own step, here of length h = 1/200.
    rows = replace(
        chain(Gaussian(0.0, reference=0.0), DDIM(), 200), chosen=torch.tensor([[60, 100, 150]] * 4)
    )
    field = Gaussian(0.0, reference=0.0)
    terms, _ = AdjointMatching(reward_weight=3.0, num_steps=3).path_loss(field, rows)
    sigma = torch.tensor([0.7, 0.5, 0.25], dtype=torch.float64)
    adjoint = -3 * K * (1 - sigma) / spread(sigma)
    expected = (2 * sigma / (1 - sigma) * adjoint**2 / 200).mean()
    assert_close(terms.detach(), expected.expand(4), rtol=0.03, atol=0)


@pytest.mark.parametrize("level", [0.1, 0.6])
def test_of_the_last_step_alone_the_flows_adjoint_is_refl_over_cost_and_step(level):
    # 2/d (v_θ - v_ref + r'/c) dv against σ r' dv, over d = 3 elements, at v_θ = v_ref.
    field, x = NonlinearField(0.7, reference=0.7, policy=0.7), normal(2, 3)
    sigma = torch.full((2,), level, dtype=torch.float64)
    x0 = x - level * field.of(field.theta.detach(), x, sigma)
    last = paths(torch.stack([x, x0], 1), torch.tensor([[level, 0.0]] * 2, dtype=torch.float64))
    objective = AdjointMatchingODE(cost=4.0, num_steps=1)
    found = slope_of(lambda: objective.path_loss(field, last)[0].sum(), field)
    refl, late = RewardGradient(route=OneStep()), paths(x[:, None], sigma[:, None])
    of_refl = slope_of(lambda: refl.path_loss(field, late)[0].sum(), field)
    assert abs(found) > 1e-3
    assert_close(found, 2 / (3 * 4.0 * level) * of_refl)


def test_the_shift_of_a_target_is_held_to_the_largest():
    class Still(Gaussian):
        @staticmethod
        def of(theta, x, sigma):
            return theta + 0 * x

    rows = paths(normal(1, 2, 3), torch.tensor([[0.3, 0.0]], dtype=torch.float64))
    field = Still(0.0, reference=0.0, policy=0.0)
    objective = AdjointMatchingODE(cost=0.1, num_steps=1, largest_shift=0.5)
    assert_close(objective.path_loss(field, rows)[0].item(), 0.25)


def test_no_reward_gradient_leaves_the_reference_where_it_is():
    class Indifferent(Gaussian):
        def reward(self, latents, wording="{}"):
            return 0 * latents.flatten(1).sum(1)

    field = Indifferent(0.0, reference=0.0, policy=0.0)
    rows = replace(chain(field, DDIM(), 6), chosen=torch.tensor([[0, 4]] * 4))
    for objective in (AdjointMatching(reward_weight=3.0, num_steps=2), AdjointMatchingODE(cost=1.0)):
        terms, _ = objective.path_loss(field, rows)
        assert terms.abs().max() == 0
        assert slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field) == 0  # noqa: B023


@pytest.mark.parametrize("steps", [8, 50])
def test_only_memoryless_kernels_forget_the_initial_noise(steps):
    sigmas = Uniform().sigmas(steps)
    assert abs(memory_of_noise(DDIM(noise_level=1.0), sigmas)) < 1e-6
    assert abs(memory_of_noise(CPS(noise_level=1.0), sigmas)) < 1e-6
    assert memory_of_noise(FlowSDE(noise_level=0.7), sigmas) > 0.05
    assert memory_of_noise(DDIM(noise_level=0.3), sigmas) > 0.3
    assert abs(memory_of_noise(DDIM(noise_level=0.0), sigmas)) == pytest.approx(1.0)


def test_the_correlation_is_that_of_drawn_samples():
    sigmas, kernel = Uniform().sigmas(10).double(), FlowSDE(noise_level=0.7)
    noise = x = normal(200_000, 1)
    for at, to in pairwise(sigmas):
        velocity = x * (2 * at - 1) / spread(at)
        x = (
            kernel.transition(x, velocity, at, to).sample(normal(*x.shape))
            if to > 0
            else Euler().step(x, velocity, at, to, None)[0]
        )
    drawn = float(torch.corrcoef(torch.cat([noise, x], 1).T)[0, 1])
    assert memory_of_noise(kernel, sigmas) == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["adjoint_matching", "adjoint_matching_ode"])
def test_a_forest_gives_the_rows_and_costs_the_passes_that_are_planned(name, recompute, tiny_policy, prompts):
    policy, steps = tiny_policy(), 6
    policy.weights.add("reference")
    if name == "adjoint_matching":
        objective = AdjointMatching(reward_weight=1.0, num_steps=3, recompute=recompute)
        rollout = Rollout(plan=AllSteps(), group_size=2, steps=steps, schedule=Uniform(), kernel=DDIM())
    else:
        objective = AdjointMatchingODE(cost=1.0, num_steps=3, recompute=recompute)
        rollout = Rollout(plan=Deterministic(), group_size=2, steps=steps, schedule=Uniform())
    roots = [Root(0, g, g, 0) for g in range(2)]
    forest = grow(policy, prompts[:1], roots, rollout, seed=0, iteration=0, keep_states=True)
    rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
    before, judge = policy.passes.evaluations, judge_of([Brightness()], forest.prompts)
    backward(objective, policy, rows, forest.condition, 8, 1.0, judge=judge)
    gradient, others = objective.passes(steps)
    assert policy.passes.evaluations - before == 2 * (gradient + sum(others.values()))
    assert policy.passes.backwards == 2 * gradient
    assert all(p.grad is not None for p in policy.weights.parameters.values())
    with policy.weights.use("reference"):  # no graph is left open
        pass
