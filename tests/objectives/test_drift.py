"""Ratios and trust regions that read how far the mean of a step has moved: Guard, Flow-DPPO, Flow-CPS."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.core.values import Prompt, Transitions
from thalweg.credit.step_weight import step_weights
from thalweg.flow import FlowSDE
from thalweg.objectives import ClippedRatio
from thalweg.objectives.ratio import masked
from thalweg.rollout import Rollout, Root, Tree, grow

SIGMA, SIGMA_NEXT, K, S = 0.8, 0.5, 0.4, 0.3
J = (1 - SIGMA_NEXT) * SIGMA - K * (1 - SIGMA)


def drifted(count=3, elements=4, drift=0.0, **changes):
    """Rows of one step, the velocity of today, and (dv, z): what the network changed, and the drawn noise."""
    generator = torch.Generator().manual_seed(0)
    x, v_old, dv, z = torch.randn(4, count, elements, dtype=torch.float64, generator=generator)
    dv = drift * dv
    old_mean = (1 - SIGMA_NEXT) * (x - SIGMA * v_old) + K * (x + (1 - SIGMA) * v_old)
    one, column = torch.ones(count, dtype=torch.float64), torch.arange(count)
    normal = torch.distributions.Normal(old_mean, S)
    log_prob = normal.log_prob(old_mean + S * z).mean(1)
    rows = Transitions(
        x=x,
        x_next=old_mean + S * z,
        sigma=one * SIGMA,
        sigma_next=one * SIGMA_NEXT,
        k=one * K,
        std=one * S,
        old_log_prob=log_prob,
        advantages=torch.linspace(-2, 3, count, dtype=torch.float64)[:, None],
        weight=one,
        condition=column,
        prompt_slot=column,
        seed_group=column,
        sample=column,
        step=torch.zeros_like(column),
        depth=column,
        parent=column,
        behaviour_log_prob=log_prob,
        old_mean=old_mean,
    )
    return replace(rows, **changes), (v_old + dv).requires_grad_(), dv, z


def evaluated(objective, rows, velocity):
    return objective.loss(objective.measure(rows, rows.x, velocity, {}), rows)


def slope(objective, rows, velocity):
    (found,) = torch.autograd.grad(evaluated(objective, rows, velocity)[0].sum(), velocity)
    return found


def test_the_divergence_is_that_of_two_gaussians_a_velocity_apart():
    rows, velocity, dv, z = drifted(drift=0.2)
    objective = ClippedRatio(trust="divergence", ratio="guard")
    scalars = objective.measure(rows, rows.x, velocity, {})
    assert_close(scalars["divergence"], J**2 * dv.square().mean(1) / (2 * S**2))
    assert_close(scalars["velocity_gap"], dv.square().mean(1))
    assert_close(scalars["along_noise"], -J * (dv * z).mean(1))  # d mean = -J dv
    old = torch.distributions.Normal(rows.old_mean, S)
    now = torch.distributions.Normal(rows.old_mean - J * dv, S)
    assert_close(scalars["divergence"], torch.distributions.kl_divergence(old, now).mean(1))


def test_the_guarded_ratio_has_no_bias_where_the_plain_one_has_that_of_the_divergence():
    rows, velocity, dv, _ = drifted(count=100_000, elements=2, drift=0.5)
    found = {}
    for ratio in ("guard", "step"):
        log_ratio = evaluated(ClippedRatio(ratio=ratio), rows, velocity)[1]["log_ratio"]
        found[ratio] = log_ratio.mean().item()
    delta = J * dv
    # Standard errors: rms(delta) / sqrt(2 · 10^5) and that over s.
    assert abs(found["guard"]) < 4 * delta.std().item() / 447
    bias = -(delta.square().mean() / (2 * S**2)).item()
    assert found["step"] == pytest.approx(bias, abs=4 * delta.std().item() / S / 447)
    assert bias < -0.1


@pytest.mark.parametrize(
    ("ratio", "scale"), [("step", 1 / S), ("guard", 1.0), ("unnormalized", 2 * S), ("sum", 4 / S)]
)
def test_the_first_gradient_of_each_ratio_is_the_published_one(ratio, scale):
    # A J z / d an element times 1/s (Flow-GRPO), 1 (Guard), 2 s (CPS), or d/s for the true ratio.
    rows, velocity, _, z = drifted()
    expected = rows.advantages * J * z / 4 * scale
    assert_close(slope(ClippedRatio(ratio=ratio), rows, velocity), expected, atol=1e-10, rtol=1e-8)


def test_guard_weighs_steps_by_their_length():
    levels = torch.tensor([[1.0, 0.9], [0.9, 0.5], [0.5, 0.3]], dtype=torch.float64)
    rows = drifted(sigma=levels[:, 0], sigma_next=levels[:, 1], step=torch.arange(3))[0]
    weight = step_weights("step_size", rows, Processes())
    inverse = torch.tensor([10, 2.5, 5], dtype=torch.float64)  # 1/.1, 1/.4, 1/.2: mean 5.8333
    assert_close(weight, inverse / inverse.mean())


def test_rectified_steps_have_gradients_of_one_size(linear_policy):
    # |A| w J / (s sqrt(d)) is the same for every step, whatever its noise.
    sigma = torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)
    sigma_next = torch.tensor([0.8, 0.6, 0.1], dtype=torch.float64)
    k, s = FlowSDE().coefficients(sigma, sigma_next, torch.ones_like(sigma))
    rows = drifted(sigma=sigma, sigma_next=sigma_next, k=k, std=s, step=torch.arange(3))[0]
    weight = step_weights("rectified", rows, Processes())
    of_step = weight * ((1 - sigma_next) * sigma - k * (1 - sigma)) / s
    assert_close(of_step, of_step[:1].expand(3))
    q = s / ((1 - sigma_next) * sigma - k * (1 - sigma))
    assert_close(weight, q / q.mean())


@pytest.mark.parametrize(
    ("ratio", "advantage", "divergence", "kept"),
    [
        (1.2, 1.0, 0.5, False),  # far, and further: better and already likelier
        (0.8, -1.0, 0.5, False),
        (1.2, -1.0, 0.5, True),  # far, and back
        (0.8, 1.0, 0.5, True),
        (1.2, 1.0, 0.1, True),  # near
        (1.0, 1.0, 0.5, True),
    ],
)
def test_terms_are_left_out_where_they_lead_further_away_than_the_divergence_may(
    ratio, advantage, divergence, kept
):
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    given = torch.tensor([[advantage]], dtype=torch.float64)
    terms, dropped = masked(log_ratio, given, torch.tensor([divergence], dtype=torch.float64), 0.3)
    terms.sum().backward()
    assert terms.item() == pytest.approx(-advantage * ratio * kept)
    assert log_ratio.grad.item() == pytest.approx(-advantage * ratio * kept)
    assert dropped.item() == (not kept)


def test_a_left_out_term_of_infinite_ratio_is_zero():
    log_ratio = torch.tensor([1000.0], requires_grad=True)
    terms, _ = masked(log_ratio, torch.ones(1, 1), torch.ones(1), 0.5)
    terms.sum().backward()
    assert terms.item() == 0 and log_ratio.grad.item() == 0


def test_a_clip_in_nats_is_a_clip_of_the_summed_log_ratio():
    rows, velocity, _, _ = drifted(drift=0.5)
    nats, plain = ClippedRatio(clip_nats=0.4), ClippedRatio(clip_range=0.1)  # 4 elements
    assert (nats.clip_of(4), nats.clip_of(65536)) == (0.1, pytest.approx(6.1e-6, rel=0.01))
    assert_close(evaluated(nats, rows, velocity)[0], evaluated(plain, rows, velocity)[0])


def test_bounds_follow_the_advantage():
    # sigmoid(2 · ln 3 / 2) = 3/4: better samples may go up by .1 + .75 · .2 and down by .1 + .25 · .2.
    better = torch.log(torch.tensor(3.0, dtype=torch.float64)).item() / 2
    objective = ClippedRatio(clip_range=0.1, clip_range_max=0.3, clip_sensitivity=2.0)
    for advantage, low, high in ((better, 0.85, 1.25), (-better, 0.75, 1.15)):
        for target, reached in ((2.0, high), (0.1, low)):
            rows, velocity, _, _ = drifted(count=1, advantages=torch.full((1, 1), advantage).double())
            rows = replace(rows, old_log_prob=rows.old_log_prob - torch.tensor([target]).double().log())
            terms, _ = evaluated(objective, rows, velocity.detach())
            held = (target > 1) == (advantage > 0)
            assert terms.item() == pytest.approx(-advantage * (reached if held else target), rel=1e-6)


def test_imitation_pulls_towards_the_way_to_the_best_sample_once_the_policy_has_left_it(linear_policy):
    policy = linear_policy()
    rollout = Rollout(
        plan=Tree(branching=2, forks=(0, 1)), group_size=4, seed_groups=1, steps=4, kernel=FlowSDE()
    )
    roots = [Root(0, 0, 0, 0), Root(1, 0, 1, 1)]
    prompts = (Prompt("a"), Prompt("b"))
    forest = grow(policy, prompts, roots, rollout, seed=0, iteration=0, keep_mean=True)
    best = torch.tensor([0.0, 3.0, 1.0, 1.0, 0.0, 0.0, -1.0, 2.0])[:, None]  # samples 1 and 7
    objective = ClippedRatio(imitation_weight=0.5)
    rows = objective.experience(forest, forest.advantages(best), seed=0, iteration=0)
    # Rows of step 0: 2 edges a tree, of steps 1 and 2: 4.
    on = [True, False, False, True, *[False, True, False, False, False, False, False, True] * 2]
    assert rows.on_best_way.tolist() == on

    without = replace(rows, on_best_way=None)

    def velocity_now():
        here = forest.condition.index(rows.condition)
        return policy.velocity(rows.x, rows.sigma, here).detach().requires_grad_()

    plain = ClippedRatio()
    at_start = slope(objective, rows, velocity_now()) - slope(plain, without, velocity_now())
    assert at_start.abs().max() < 1e-5
    with torch.no_grad():
        policy.bias += 0.2
    pull = slope(objective, rows, velocity_now()) - slope(plain, without, velocity_now())
    # d/dv of .5 · mean (v - v_old)²
    expected = torch.tensor(on).float()[:, None].expand(-1, 3) * 0.5 * 2 * 0.2 / 3
    assert_close(pull, expected, atol=1e-4, rtol=1e-3)


def test_the_guarded_ratio_is_clipped_as_often_above_as_below():
    rows, velocity, dv, _ = drifted(count=50_000, elements=64, drift=0.4)
    held = {}
    for ratio, scale in (("guard", 1.0), ("step", 1 / S)):
        # As wide as the standard deviation of the noise's part, J |dv| z / d.
        clip = scale * (J * dv).square().mean(1).mean().sqrt().item() / 8
        for sign in (1, -1):
            signed = replace(rows, advantages=sign * torch.ones(50_000, 1, dtype=torch.float64))
            held[ratio, sign] = (
                evaluated(ClippedRatio(ratio=ratio, clip_range=clip), signed, velocity)[1]["clip_fraction"]
                .mean()
                .item()
            )
    # A normal number lies beyond one standard deviation with .159 on either side; standard error .0016.
    assert held["guard", 1] == pytest.approx(held["guard", -1], abs=0.008)
    assert held["guard", 1] == pytest.approx(0.159, abs=0.015)
    # The plain one is biased downwards by half a squared drift: far more rows fall below.
    assert held["step", -1] > held["step", 1] + 0.1


def test_the_divergence_of_many_updates_on_one_batch_stays_where_its_range_is():
    rows, start, _, z = drifted(count=256, elements=4)
    # Rows are better the more noise they drew along one direction: the policy is pulled there without end.
    signal = z @ torch.tensor([0.8, -0.4, 0.4, 0.2], dtype=torch.float64)
    rows = replace(rows, advantages=signal[:, None])
    range_of, reached = 1e-3, {}
    for name, tau in (("masked", range_of), ("free", 1e9)):
        objective = ClippedRatio(trust="divergence", divergence_range=tau)
        shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        for _ in range(20):
            terms, _ = evaluated(objective, rows, start.detach() + shift)
            (found,) = torch.autograd.grad(terms.mean(), shift)
            with torch.no_grad():
                shift -= 0.15 * found
        reached[name] = evaluated(objective, rows, start.detach() + shift)[1]["divergence"].mean().item()
    assert reached["free"] > 20 * range_of
    assert range_of / 2 < reached["masked"] < 5 * range_of
