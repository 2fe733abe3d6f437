"""Every route's gradient against finite differences or a closed form, and the identities of its values."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from objectives.nonlinear_field import NonlinearField, paths, slope_by_differences, slope_of
from thalweg.core.values import Prompt
from thalweg.flow import Uniform
from thalweg.objectives import RewardGradient
from thalweg.objectives.reward_gradient import Relative
from thalweg.objectives.routes import DirectAlign, LastSteps, Leap, OneStep
from thalweg.rewards.pixels import Brightness
from thalweg.rollout import Deterministic, Rollout, Root, grow
from thalweg.training.backward import backward
from thalweg.training.pathwise import judge_of

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def levels(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def loss_of(objective, field, rows):
    return lambda: objective.path_loss(field, rows)[0].sum()


ROUTES = {
    "one step": (OneStep(), paths(normal(2, 1, 3), levels((0.3,), (0.2,)))),
    "last step": (LastSteps(), paths(normal(2, 1, 3), levels((0.2, 0.0), (0.2, 0.0)))),
    "all steps": (
        LastSteps(num_steps=None),
        paths(normal(2, 1, 3), levels(*[(1.0, 0.7, 0.3, 0.0)] * 2)),
    ),
    "denoise": (DirectAlign(), paths(normal(2, 2, 3), levels((0.8, 0.7), (0.4, 0.38)))),
    "invert": (DirectAlign(), paths(normal(2, 2, 3), levels((0.8, 0.7), (0.4, 0.38)), step=1)),
}


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("margin", [None, 30.0])
def test_the_gradient_is_that_of_finite_differences(name, margin):
    route, rows = ROUTES[name]
    field, objective = NonlinearField(), RewardGradient(route=route, margin=margin, scale=0.5)
    loss = loss_of(objective, field, rows)
    slope = slope_of(loss, field)
    assert abs(slope) > 1e-3
    assert_close(slope, slope_by_differences(loss, field), rtol=1e-6, atol=1e-8)


def beginning(name, rows):
    """Where the first pass of the route is, by hand."""
    if name not in ("denoise", "invert"):
        return rows.states[:, 0], rows.sigmas[:, 0]
    (noise, x0), sigma = rows.states.unbind(1), rows.sigmas[:, 0 if name == "denoise" else 1]
    return sigma[:, None] * noise + (1 - sigma[:, None]) * x0, sigma


@pytest.mark.parametrize("name", ROUTES)
def test_the_reference_pulls_the_velocity_where_the_route_begins(name):
    route, rows = ROUTES[name]
    field = NonlinearField(reference=0.4)
    x, sigma = beginning(name, rows)
    theta, reference = field.theta.detach(), field.named["reference"]
    apart = field.of(theta, x, sigma) - field.of(reference, x, sigma)
    of_theta = x / torch.cosh(theta * x + sigma[:, None]) ** 2 + 2 * theta * sigma[:, None]
    free, held = (RewardGradient(route=route, scale=0.5, reference_weight=w) for w in (0.0, 3.0))
    found = slope_of(loss_of(held, field, rows), field) - slope_of(loss_of(free, field, rows), field)
    assert_close(found, float(3.0 * (2 * apart * of_theta).mean(1).sum()))
    report = held.path_loss(field, rows)[1]
    assert_close(report["distance/reference"], apart.square().mean(1))
    assert free.anchors == () and held.anchors == ("reference",)


@pytest.mark.parametrize(
    ("route", "rows"),
    [(OneStep(), 1), (LastSteps(num_steps=2), 1), (LastSteps(copies=3), 3), (Leap(), 1), (DirectAlign(), 2)],
)
def test_the_pull_costs_one_pass_of_the_reference_for_each_way(route, rows, tiny_policy, prompts):
    policy = tiny_policy()
    policy.weights.add("reference")
    rollout = Rollout(plan=Deterministic(), group_size=1, steps=4, schedule=Uniform())
    forest = grow(policy, prompts[:1], [Root(0, 0, 0, 0)], rollout, seed=0, iteration=0, keep_states=True)
    spent = []
    for weight in (0.0, 1.0):
        objective = RewardGradient(route=route, reference_weight=weight)
        found = objective.experience(forest, forest.advantages(torch.zeros(1, 1)), seed=0, iteration=0)
        before, judge = policy.passes.evaluations, judge_of([Brightness()], forest.prompts)
        backward(objective, policy, found, forest.condition, 8, 1.0, judge=judge)
        spent.append(policy.passes.evaluations - before)
        gradient, others = objective.passes(4)
        assert spent[-1] == gradient + sum(others.values())
    assert spent[1] - spent[0] == rows
    with policy.weights.use("reference"):  # no graph is left open
        pass


def test_one_step_is_minus_sigma_times_the_slopes_of_reward_and_velocity():
    route, rows = ROUTES["one step"]
    field = NonlinearField()
    x, sigma = rows.states[:, 0], rows.sigmas[:, :1]
    theta = field.theta.detach()
    clean = x - sigma * field.of(theta, x, sigma[:, 0])
    of_velocity = x / torch.cosh(theta * x + sigma) ** 2 + 2 * theta * sigma
    expected = (2 * torch.cos(clean) * -sigma * of_velocity).sum()
    assert_close(-slope_of(loss_of(RewardGradient(route=route), field, rows), field), float(expected))


def linear_rollout(linear_policy, steps=5):
    policy = linear_policy((2,), torch.float32)
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=steps, schedule=Uniform())
    roots = [Root(0, g, g, 0) for g in range(2)]
    forest = grow(policy, [Prompt("a")], roots, rollout, seed=0, iteration=0, keep_states=True)
    return policy, forest


def slopes(sigma):
    return (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("count", [1, 3, None])
def test_the_last_steps_of_a_linear_flow_have_the_closed_form(count, detach, linear_policy):
    policy, forest = linear_rollout(linear_policy)
    objective = RewardGradient(route=LastSteps(num_steps=count, detach_input=detach))
    rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
    backward(
        objective,
        policy,
        rows,
        forest.condition,
        8,
        0.5,
        judge=lambda policy, x, where, wording: x.sum(1),
    )
    sigmas = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0][-1 - (count or 5) :]
    moved = 0.0  # dx/dbias
    for at, to in pairwise(sigmas):
        moved = moved * (1 if detach else 1 + (to - at) * slopes(at)) + (to - at)
    assert_close(policy.bias.grad, torch.full((2,), -moved), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, None])
def test_taken_up_again_the_steps_end_in_the_rollouts_own_sample(count, linear_policy):
    policy, forest = linear_rollout(linear_policy)
    route, seen = LastSteps(num_steps=count), []

    def judge(policy, x, where, wording):
        seen.append(x.detach())
        return x.sum(1)

    objective = RewardGradient(route=route)
    rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
    backward(objective, policy, rows, forest.condition, 8, 1.0, judge=judge)
    assert_close(seen[0], forest.latents, rtol=1e-6, atol=1e-6)


def test_a_drawn_number_of_steps_changes_with_the_iteration_and_stays_within_its_bound(linear_policy):
    _, forest = linear_rollout(linear_policy)
    objective, advantages = RewardGradient(route=LastSteps(num_steps=4, drawn=True)), torch.zeros(2, 1)
    counts = {
        objective.experience(forest, forest.advantages(advantages), seed=0, iteration=i).sigmas.shape[1] - 1
        for i in range(40)
    }
    assert counts == {1, 2, 3, 4}


def test_copies_are_the_sample_under_fresh_noise_of_the_last_level(linear_policy):
    _, forest = linear_rollout(linear_policy)
    route = LastSteps(copies=500)
    rows = route.paths(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
    assert rows.sigmas.unique().tolist() == pytest.approx([0.0, 0.2])
    starts = rows.states[:, 0].view(2, 500, 2)
    assert_close(starts.mean(1), 0.8 * forest.latents, rtol=0, atol=0.04)
    assert_close(starts.std(1), torch.full((2, 2), 0.2), rtol=0, atol=0.03)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_activations_changes_passes_and_not_the_gradient(recompute, tiny_policy, prompts):
    found = []
    for again in (False, recompute):
        policy = tiny_policy()
        rollout = Rollout(plan=Deterministic(), group_size=1, steps=3, schedule=Uniform())
        forest = grow(
            policy,
            prompts[:2],
            [Root(s, 0, s, s) for s in (0, 1)],
            rollout,
            seed=0,
            iteration=0,
            keep_states=True,
        )
        objective = RewardGradient(route=LastSteps(num_steps=None, recompute=again))
        rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
        before = policy.passes.evaluations
        judge = judge_of([Brightness()], forest.prompts)
        backward(objective, policy, rows, forest.condition, 8, 1.0, judge=judge)
        assert policy.passes.evaluations - before == 2 * 3 * (2 if again else 1)
        gradient, others = objective.passes(3)
        assert policy.passes.evaluations - before == 2 * (gradient + others["policy"])
        assert policy.passes.backwards == 2 * gradient
        with policy.weights.use("policy"):
            policy.weights.add("other")
        with policy.weights.use("other"):  # no graph is left open
            pass
        found.append([p.grad for p in policy.weights.parameters.values()])
    assert max(float(g.abs().max()) for g in found[0]) > 1e-5
    assert_close(found[0], found[1])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_leaps_have_the_values_of_the_real_states_and_the_papers_gradient(alpha):
    states, sigmas = normal(2, 3, 1), levels((0.9, 0.4, 0.0), (0.7, 0.2, 0.0))
    field, rows = NonlinearField(), paths(states, sigmas)
    route = Leap(input_gradient=alpha)
    walk = route.follow(field, rows)
    assert_close(walk.x0.detach(), states[:, 2])
    (x_k, x_j, x_0), (k, j) = states[..., 0].unbind(1), sigmas[:, :2].unbind(1)
    theta = field.theta.detach()

    def of_theta(x, s):
        return x / torch.cosh(theta * x + s) ** 2 + 2 * theta * s

    of_x = theta / torch.cosh(theta * x_j + j) ** 2
    expected = -j * of_theta(x_j, j) - (k - j) * of_theta(x_k, k)
    expected = expected + alpha * j * (k - j) * of_x * of_theta(x_k, k)
    for row in (0, 1):
        (got,) = torch.autograd.grad(walk.x0[row, 0], field.theta, retain_graph=True)
        assert_close(got, expected[row])
    leap_j = x_k - (k - j) * field.of(theta, x_k, k)
    leap_0 = x_j - j * field.of(theta, x_j, j)
    floor = torch.tensor(0.1, dtype=torch.float64)
    missed = torch.maximum((x_j - leap_j).abs(), floor) + torch.maximum((x_0 - leap_0).abs(), floor)
    assert_close(walk.count, 1 / missed)


def test_two_leaps_over_two_steps_are_the_whole_gradient(linear_policy):
    policy, forest = linear_rollout(linear_policy, steps=2)
    found = []
    for route in (LastSteps(num_steps=None), Leap(input_gradient=1.0)):
        objective = RewardGradient(route=route)
        rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
        policy.bias.grad = None
        backward(
            objective,
            policy,
            rows,
            forest.condition,
            8,
            1.0,
            judge=lambda policy, x, where, wording: x.sum(1),
        )
        found.append(policy.bias.grad)
    assert_close(found[1], found[0] / 0.2, rtol=1e-5, atol=1e-6)  # no leap misses: 1 / (0.1 + 0.1)


@pytest.mark.parametrize("step", [0, 1])
def test_direct_align_recovers_the_sample_where_the_velocity_is_its_own(step):
    states = normal(3, 2, 4)
    rows = paths(states, levels((0.9, 0.85), (0.5, 0.4), (0.2, 0.1)), step)
    noise, x0 = states.unbind(1)

    class Straight(NonlinearField):
        def velocity(self, x, sigma, *, recompute=False):
            return noise - x0 + self.theta

    field = Straight(theta=0.0)
    clean = DirectAlign().follow(field, rows).x0
    assert_close(clean.detach(), x0, rtol=1e-9, atol=1e-9)
    (high, low), sign = rows.sigmas.unbind(1), -1 if step == 0 else 1
    there = low if step == 0 else high
    for row in range(3):
        (slope,) = torch.autograd.grad(clean[row, 0], field.theta, retain_graph=True)
        assert_close(slope, sign * (high - low)[row] / (1 - there)[row])


def test_direct_align_keeps_its_levels_apart_and_below_the_largest(linear_policy):
    _, forest = linear_rollout(linear_policy)
    for shift in (1.0, 3.0):
        route = DirectAlign(sigma_max=0.9, largest_step=0.1, shift=shift)
        rows = [
            route.paths(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=i) for i in range(50)
        ]
        sigmas = torch.cat([r.sigmas for r in rows])
        assert (sigmas[:, 0] > sigmas[:, 1]).all() and sigmas[:, 1].min() >= 0
        assert 0.8 < sigmas.max() <= 0.9 + 1e-6
        unshifted = sigmas / (shift - (shift - 1) * sigmas)
        assert (unshifted[:, 0] - unshifted[:, 1]).max() <= 0.1 + 1e-5
        assert rows[0].step.tolist() == [0, 1, 0, 1]
        assert_close(rows[0].states[0], forest.paths[0, [0, -1]])


@pytest.mark.parametrize("high", [0.3, 0.9])
def test_direct_align_down_to_the_data_is_refl_from_the_upper_level(high):
    ends, field = normal(2, 2, 3), NonlinearField()
    state = high * ends[:, :1] + (1 - high) * ends[:, 1:]
    aligned = paths(ends, levels((high, 0.0), (high, 0.0)))
    late = paths(state, levels((high,), (high,)))
    clean = state[:, 0] - high * field.of(field.theta.detach(), state[:, 0], aligned.sigmas[:, 0])
    assert_close(DirectAlign().follow(field, aligned).x0.detach(), clean)
    found = slope_of(loss_of(RewardGradient(route=DirectAlign()), field, aligned), field)
    assert abs(found) > 1e-3
    assert_close(found, slope_of(loss_of(RewardGradient(route=OneStep()), field, late), field))


def test_a_relative_reward_of_one_wording_is_k_times_it():
    rows = paths(normal(2, 2, 3), levels((0.8, 0.7), (0.4, 0.38)))
    field, x0 = NonlinearField(), normal(2, 3)
    same = Relative(positive="{}", negative="{}", denoise=(0.1, 0.25))
    k = 0.25 + (0.1 - 0.25) * rows.sigmas[:, 0]
    assert_close(same.reward(field, x0, rows), k * field.reward(x0))


def test_an_inverting_row_is_paid_for_the_negative_wording():
    field, x0, sigmas = NonlinearField(), normal(1, 3), levels((0.5, 0.4))
    relative = Relative(positive="{}", negative="")
    denoise = relative.reward(field, x0, paths(normal(1, 2, 3), sigmas))
    invert = relative.reward(field, x0, paths(normal(1, 2, 3), sigmas, step=1))
    plain = field.reward(x0, "")  # the stub pays twice as much for the prompt
    assert_close(denoise, (1 + 0.175) * 2 * plain - plain)
    assert_close(invert, (1 + 0.155) * plain - 2 * plain)


def test_a_sample_past_the_margin_has_no_gradient():
    route, rows = ROUTES["one step"]
    field = NonlinearField()
    worth = float(RewardGradient(route=route).path_loss(field, rows)[1]["path_reward"].min())
    objective = RewardGradient(route=route, margin=worth - 1e-3)
    terms, report = objective.path_loss(field, rows)
    assert terms.tolist() == [0.0, 0.0] and report["margin_reached"].tolist() == [1.0, 1.0]
    assert math.isclose(slope_of(loss_of(objective, field, rows), field), 0.0)
