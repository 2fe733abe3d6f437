"""Reward score matching of both orders, against closed forms of Gaussian data and by finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from objectives.nonlinear_field import NonlinearField, paths, slope_by_differences, slope_of
from objectives.test_adjoint_matching import Gaussian, K, normal, spread
from objectives.test_drift import SIGMA, SIGMA_NEXT, J, drifted
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit.step_weight import step_weights
from thalweg.flow import FlowSDE, Uniform
from thalweg.objectives import ClippedRatio, ScoreMatching
from thalweg.objectives.adjoint import adjoints
from thalweg.objectives.ratio import hinged
from thalweg.rollout import BranchBudget, Deterministic, Rollout, Root, grow

LEVELS = torch.tensor([[1.0, 0.7, 0.4, 0.2, 0.0]] * 3, dtype=torch.float64)
CHOSEN = torch.tensor([[0, 2], [1, 3], [1, 2]])


def rows_of(states=None):
    states = normal(3, 5, 2) if states is None else states
    return replace(paths(states, LEVELS), chosen=CHOSEN)


@pytest.mark.parametrize("slope", ["final", "one_step"])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_linear_reward_pulls_by_its_slope_and_the_share_of_data(slope, power):
    # Reward k x0: both slopes are k everywhere, so the loss is <(v - v_ref + b (1-σ)^p k)²>.
    rows, field = rows_of(), Gaussian(0.2, reference=0.0, policy=0.2)
    objective = ScoreMatching(slope=slope, strength=3.0, data_power=power, num_steps=2)
    terms, report = objective.path_loss(field, rows)
    sigma = LEVELS.gather(1, CHOSEN)
    assert_close(terms.detach(), (0.2 + 3.0 * (1 - sigma) ** power * K).square().mean(1))
    assert_close(report["slope_size"], torch.full((3,), K, dtype=torch.float64))


def test_the_two_slopes_are_taken_at_their_own_samples():
    class Bent(Gaussian):
        def reward(self, latents, wording="{}"):
            return latents.square().flatten(1).sum(1) / 2

    rows, field = rows_of(), Bent(0.0, reference=0.0, policy=0.0)
    of = {}
    for slope in ("final", "one_step"):
        objective = ScoreMatching(slope=slope, strength=1.0, data_power=0.0, num_steps=2)
        of[slope] = objective.path_loss(field, rows)[0].detach()
    assert_close(of["final"], rows.states[:, -1].square().mean(1))
    every, guesses = torch.arange(3), []
    for step in CHOSEN.T:
        x, sigma = rows.states[every, step], LEVELS[every, step][:, None]
        guesses.append(x * (1 - sigma) / spread(sigma))  # x - σ v for data N(0, 1)
    assert_close(of["one_step"], torch.stack(guesses).square().mean(2).mean(0))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_final_slopes_vary_as_the_samples_of_a_state_do_and_one_step_slopes_not_at_all(level):
    # Reward x0²/2: g = x0 or x̂0; given x, x0 has mean (1-σ) x/D and variance σ²/D, more with more noise.
    class Bent(Gaussian):
        def reward(self, latents, wording="{}"):
            return latents.square().flatten(1).sum(1) / 2

    x, (nodes, mass) = 1.3, (torch.tensor(t) for t in np.polynomial.hermite_e.hermegauss(6))
    mass, size = mass / mass.sum(), spread(level)
    mean = (1 - level) * x / size
    x0 = mean + level / size**0.5 * nodes
    states = torch.stack([torch.full_like(x0, x), x0], 1)[..., None]
    rows = paths(states, torch.tensor([[level, 0.0]] * 6, dtype=torch.float64))
    rows = replace(rows, chosen=torch.zeros(6, 1, dtype=torch.int64))
    for slope, variance in (("final", level**2 / size), ("one_step", 0.0)):
        field = Bent(0.0, reference=0.0, policy=0.0)
        terms, _ = ScoreMatching(slope=slope, strength=3.0, num_steps=1).path_loss(field, rows)
        # At v_θ = v_ref the slope in θ is 2 b (1-σ) g.
        each = [torch.autograd.grad(term, field.theta, retain_graph=True)[0] for term in terms]
        g = torch.stack(each) / (2 * 3.0 * (1 - level))
        assert float((mass * g).sum()) == pytest.approx(mean)
        assert float((mass * (g - mean) ** 2).sum()) == pytest.approx(variance, abs=1e-12)
    # Along the flow x0 = x/√D, so the adjoint is the final slope over √D: more varied than it is.
    steps = torch.linspace(level, 0, 201, dtype=torch.float64)
    before = torch.cat([steps[:1] + 1e-3, steps]).expand(6, -1)
    way = paths(torch.zeros(6, 202, 1, dtype=torch.float64), before)
    lean = adjoints(Bent(0.0, reference=0.0), "reference", way, x0[:, None])[0][:, 0]
    factor = size**-0.5
    assert float((mass * lean).sum()) == pytest.approx(factor * mean, rel=0.02)
    found = float((mass * (lean - (mass * lean).sum()) ** 2).sum())
    assert found == pytest.approx(factor**2 * level**2 / size, rel=0.04)


@pytest.mark.parametrize("slope", ["final", "one_step"])
def test_the_gradient_is_that_of_finite_differences_with_the_slope_held(slope):
    rows = rows_of()
    field = NonlinearField(0.7, reference=0.5, policy=0.6)
    objective = ScoreMatching(slope=slope, strength=2.0, num_steps=2)

    def loss():
        return objective.path_loss(field, rows)[0].sum()

    found = slope_of(loss, field)
    assert abs(found) > 1e-3
    assert_close(found, slope_by_differences(loss, field), rtol=1e-6, atol=1e-8)


def test_each_sample_is_looked_at_once_in_every_run_of_its_states(linear_policy):
    policy = linear_policy((2,))
    rollout = Rollout(plan=Deterministic(), group_size=8, steps=6, schedule=Uniform())
    roots = [Root(0, g, g, 0) for g in range(8)]
    forest = grow(policy, [Prompt("a")], roots, rollout, seed=0, iteration=0, keep_states=True)
    objective = ScoreMatching(strength=1.0, num_steps=3)
    rows = objective.experience(forest, forest.advantages(torch.zeros(8, 1)), seed=0, iteration=0)
    assert rows.chosen is not None
    assert (rows.chosen // 2 == torch.arange(3)).all()
    assert (rows.chosen % 2 == 0).any() and (rows.chosen % 2 == 1).any()
    assert_close(rows.states, forest.paths)


@pytest.mark.parametrize("advantage", [2.0, -0.5])
def test_the_hinge_follows_the_log_ratio_up_to_one_shift_of_the_mean_for_all_steps(advantage):
    # In units of the shift, s² log ρ, the line ends at c whatever the noise of the step.
    rows = replace(
        drifted(count=2)[0],
        std=torch.tensor([0.1, 0.5], dtype=torch.float64),
        sigma=torch.tensor([0.9, 0.5], dtype=torch.float64),
        sigma_next=torch.tensor([0.8, 0.3], dtype=torch.float64),
    )
    given = torch.full((2, 1), advantage, dtype=torch.float64)
    scale = 1 / (rows.std * (rows.sigma - rows.sigma_next))
    good = 1 if advantage > 0 else -1
    for shift, kept in ((0.0, True), (0.9, True), (1.1, False), (-3.0, True)):
        log_ratio = (good * shift * 1e-3 / rows.std**2).requires_grad_()
        terms, held = hinged(log_ratio, given, rows, 1e-3)
        terms.sum().backward()
        expected = abs(advantage) * 1e-3 * max(0.0, 1 - shift) * scale
        assert_close(terms.detach(), expected)
        slope = -advantage * rows.std**2 * scale
        assert_close(log_ratio.grad, slope if kept else 0 * slope)
        assert held.tolist() == [not kept] * 2


def test_an_advantage_of_nothing_is_a_loss_of_nothing():
    rows = drifted()[0]
    terms, held = hinged(torch.zeros(3), torch.zeros(3, 1), rows, 1e-3)
    assert terms.abs().max() == 0 and held.abs().max() == 0


def test_the_first_gradient_of_the_hinge_is_the_published_one():
    # A J z s / d an element over s Δ; and with weights mean(k) / k, k = J / s, the same for every step.
    rows, velocity, _, z = drifted()
    objective = ClippedRatio(trust="hinge", clip_range=1e-4)
    terms, _ = objective.loss(objective.measure(rows, rows.x, velocity, {}), rows)
    (slope,) = torch.autograd.grad(terms.sum(), velocity)
    delta = SIGMA - SIGMA_NEXT
    assert_close(slope, rows.advantages * J * z / 4 / delta, atol=1e-10, rtol=1e-8)


def test_weights_even_out_the_noise_of_steps_as_published():
    sigma = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    step = torch.full((3,), 0.1, dtype=torch.float64)
    k, std = FlowSDE(noise_level=0.7).coefficients(sigma, sigma - step, torch.ones_like(sigma))
    rows = drifted(sigma=sigma, sigma_next=sigma - step, k=k, std=std, step=torch.arange(3))[0]
    g = std / step.sqrt()
    published = step.sqrt() / g * (1 + (1 - sigma) * g**2 / (2 * sigma))
    weight = step_weights("rectified", rows, Processes())
    ratio = weight * published
    assert_close(ratio, ratio[:1].expand(3), rtol=1e-4, atol=0)


def test_a_branch_budget_puts_out_as_many_samples_at_each_step(linear_policy):
    rollout = Rollout(
        plan=BranchBudget(branches=(3, 0, 2)), group_size=5, seed_groups=1, steps=5, kernel=FlowSDE()
    )
    forest = grow(linear_policy(), [Prompt("a")], [Root(0, 0, 0, 0)], rollout, seed=0, iteration=0)
    assert forest.leaves.fork_step.tolist() == [0, 0, 0, 2, 2]
    assert [int(level.trained.sum()) for level in forest.levels[1:]] == [3, 0, 2, 0, 0]
    # The trunk's 3 passes, then 3 ways of 4 and 2 of 2.
    assert rollout.passes(0, 0, 1) == (3 + 12 + 4, 5)


def test_a_hinge_with_bounds_of_its_own_is_refused():
    with pytest.raises(ValueError, match="acts on the plain log-ratio alone"):
        ClippedRatio(trust="hinge", ratio="sum")


@pytest.mark.parametrize(
    ("branches", "words"),
    [((2, 2), "adds up to 4, but a seed group has 5"), ((3, 0, 0, 0, 2), "only the first 4 of")],
)
def test_a_budget_that_does_not_fit_is_refused(branches, words):
    with pytest.raises(ValueError, match=words):
        Rollout(plan=BranchBudget(branches=branches), group_size=5, seed_groups=1, steps=5, kernel=FlowSDE())
