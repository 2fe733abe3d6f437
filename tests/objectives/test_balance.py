"""Trajectory balance against hand formulas: 2 prompts x 3 paths x 2 steps, in float64."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from objectives.test_drift import J, S, drifted
from thalweg.core.values import Transitions
from thalweg.objectives import Balance, ClippedRatio

PATH = torch.arange(6).repeat_interleave(2)
GENERATOR = torch.Generator().manual_seed(0)
NOW, OLD = torch.randn(2, 12, dtype=torch.float64, generator=GENERATOR)
REWARD = torch.tensor([1.0, -0.4, -0.6, 0.3, 0.9, -1.2], dtype=torch.float64)
NOTHING = torch.zeros(12, dtype=torch.float64)
ROWS = Transitions(
    x=torch.zeros(12, 0),
    x_next=torch.zeros(12, 0),
    sigma=NOTHING,
    sigma_next=NOTHING,
    k=NOTHING,
    std=NOTHING,
    old_log_prob=OLD,
    advantages=REWARD[PATH][:, None],
    weight=torch.ones(12, dtype=torch.float64),
    condition=PATH // 3,
    prompt_slot=PATH // 3,
    seed_group=torch.zeros(12, dtype=torch.int64),
    sample=PATH,
    step=torch.tensor([0, 1] * 6),
    depth=torch.zeros(12, dtype=torch.int64),
    parent=PATH,
    behaviour_log_prob=OLD,
)


def slopes(objective: Balance, log_prob=NOW, rows: Transitions = ROWS) -> torch.Tensor:
    """d mean loss over rows / d path score, two equal steps a path."""
    log_prob = log_prob.clone().requires_grad_()
    objective.loss({"log_prob": log_prob}, rows)[0].mean().backward()
    assert_close(log_prob.grad[::2], log_prob.grad[1::2])
    return log_prob.grad[::2].view(2, 3)


def shares(scores: torch.Tensor) -> torch.Tensor:
    return scores.view(2, 3).softmax(1)


SCORE = NOW.view(6, 2).sum(1)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_divergence_pulls_each_path_by_the_difference_of_its_shares(scale):
    objective = Balance(form="kl", reward_scale=2.0, score_scale=scale)
    p, q = shares(scale * SCORE), shares(2 * REWARD)
    terms, _ = objective.loss({"log_prob": NOW}, ROWS)
    assert_close(terms.view(2, 6), (q * (q / p).log()).sum(1, keepdim=True).expand(2, 6))
    assert_close(slopes(objective), scale * (p - q) / 2)  # the mean of 2 prompts


def test_the_squares_have_the_slope_of_the_paper():
    p, q = shares(SCORE), shares(REWARD)
    gap = (p / q).log()
    expected = 2 * (gap - p * gap.sum(1, keepdim=True))
    assert_close(slopes(Balance(form="squares")), expected / 2)


def test_the_published_ratio_is_clipped_about_the_mean_of_its_group():
    moved = (NOW - OLD).view(6, 2).sum(1).view(2, 3)
    ratio = (moved - moved.mean(1, keepdim=True)).exp()
    wanted = (shares(REWARD) / shares(SCORE)).log()
    expected = torch.maximum(-wanted * ratio, -wanted * ratio.clamp(0.8, 1.2))
    terms, report = Balance(form="ratio").loss({"log_prob": NOW}, ROWS)
    assert_close(terms, expected.flatten().repeat_interleave(2))
    assert 0 < report["clip_fraction"].mean() < 1
    start = replace(ROWS, old_log_prob=NOW)
    assert_close(slopes(Balance(form="ratio"), rows=start), -wanted / 6)  # the mean of 6 paths


@pytest.mark.parametrize("form", ["kl", "squares", "ratio"])
def test_paths_drawn_in_proportion_are_left_as_they_are(form):
    log_prob = (REWARD / 2).repeat_interleave(2)  # two steps, together the reward
    at = replace(ROWS, old_log_prob=log_prob)
    assert slopes(Balance(form=form), log_prob, at).abs().max() < 1e-12


@pytest.mark.parametrize("form", ["kl", "squares", "ratio"])
def test_equal_rewards_say_nothing_and_a_constant_adds_nothing(form):
    flat = replace(ROWS, advantages=torch.where(PATH < 3, 0.0, REWARD[PATH])[:, None])
    assert (slopes(Balance(form=form), rows=flat)[0] == 0).all()
    more = replace(ROWS, advantages=ROWS.advantages + 0.3)
    assert_close(slopes(Balance(form=form), rows=more), slopes(Balance(form=form)))


def test_two_paths_are_a_logistic_comparison():
    two = ROWS.index(PATH < 2)
    log_prob = NOW[:4].clone().requires_grad_()
    Balance(form="kl").loss({"log_prob": log_prob}, two)[0].mean().backward()
    score = NOW[:4].view(2, 2).sum(1)
    better, q = torch.sigmoid(score[0] - score[1]), torch.sigmoid(REWARD[0] - REWARD[1])
    assert_close(log_prob.grad, (better - q) * torch.tensor([1.0, 1, -1, -1]).double())


@pytest.mark.parametrize("form", ["kl", "squares", "ratio"])
def test_without_a_scale_of_the_reward_every_path_is_wanted_alike(form):
    # b -> 0: q = 1/3 for each, so with p the shares of today the slopes are those of its entropy alone.
    p = shares(SCORE)
    gap = (3 * p).log()
    expected = {
        "kl": (p - 1 / 3) / 2,
        "squares": (gap - p * gap.sum(1, keepdim=True)),
        "ratio": gap / 6,
    }
    start = replace(ROWS, old_log_prob=NOW)
    found = slopes(Balance(form=form, reward_scale=1e-12), rows=start)
    assert_close(found, expected[form], rtol=1e-9, atol=1e-9)


FIVE_MODES = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.05], dtype=torch.float64)
WORTH = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def trained_on_five_modes(objective, rate: float, weight=None) -> torch.Tensor:
    """The shares of five modes, of which four are worth the same, once a table of logits has learnt from
    groups of one path to each, of one step.
    """
    logits, mode = FIVE_MODES.log().requires_grad_(), torch.arange(5)
    rows = replace(
        ROWS.index(torch.zeros(5, dtype=torch.int64)), advantages=WORTH[:, None], sample=mode, parent=mode
    )
    for _ in range(120):
        log_prob = logits.log_softmax(0)
        share = log_prob.detach().exp() if weight == "shares" else torch.ones(5, dtype=torch.float64)
        given = replace(rows, old_log_prob=log_prob.detach(), weight=share)
        terms, _ = objective.loss({"log_prob": log_prob}, given)
        (slope,) = torch.autograd.grad(terms.sum(), logits)
        with torch.no_grad():
            logits -= rate * slope
    return logits.detach().softmax(0)


@pytest.mark.parametrize(("form", "rate"), [("kl", 0.2), ("squares", 0.05), ("ratio", 0.2)])
def test_modes_that_are_worth_the_same_are_all_kept(form, rate):
    found = trained_on_five_modes(Balance(form=form, reward_scale=2.0), rate)
    assert_close(found, (2 * WORTH).softmax(0), rtol=0, atol=1e-3)


def test_climbing_the_reward_alone_lets_rare_modes_die_out():
    # Rows that count by the shares of their modes give the exact slope of the mean reward: that of a logit is
    # its share times its advantage, so what is drawn more often grows faster.
    found = trained_on_five_modes(ClippedRatio(clip_range=10.0), 2.0, weight="shares")
    assert found[0] > FIVE_MODES[0] and found[3] / found[0] < 0.9 * FIVE_MODES[3] / FIVE_MODES[0]


def test_rows_that_pad_count_nowhere():
    order = torch.cat([torch.arange(12), torch.tensor([0, 7])])
    padded = replace(ROWS.index(order), weight=torch.cat([torch.ones(12), torch.zeros(2)]).double())
    for form in ("kl", "squares", "ratio"):
        terms, _ = Balance(form=form).loss({"log_prob": NOW[order]}, padded)
        whole, _ = Balance(form=form).loss({"log_prob": NOW}, ROWS)
        assert_close(terms, torch.cat([whole, torch.zeros(2)]))


def test_ratio_norm_weighs_each_path_by_its_log_ratio_without_the_bias():
    generator = torch.Generator().manual_seed(1)
    along = 0.6 * torch.randn(12, dtype=torch.float64, generator=generator)
    plain, _ = Balance(form="ratio").loss({"log_prob": NOW}, ROWS)
    normed = Balance(form="ratio", ratio_norm=True, score_scale=2.0)
    terms, _ = normed.loss({"log_prob": NOW, "along_noise": along}, ROWS)
    same, _ = Balance(form="ratio", score_scale=2.0).loss({"log_prob": NOW}, ROWS)
    weight = along.view(6, 2).mean(1).exp().clamp(0.8, 1.2).repeat_interleave(2)
    assert_close(terms, same * weight)
    assert weight.min() == 0.8 and weight.max() == 1.2
    assert not torch.allclose(plain, same)
    assert normed.keeps_mean and not Balance().keeps_mean


def test_the_weight_reads_how_far_the_mean_has_moved_along_the_drawn_noise():
    rows, velocity, dv, z = drifted(drift=0.3)
    scalars = Balance(form="ratio", ratio_norm=True).measure(rows, rows.x, velocity, {})
    assert_close(scalars["along_noise"], -J * (dv * z).mean(1))


def test_the_pull_is_the_squared_mean_gap_of_a_path_to_the_reference():
    reference = NOW - 0.1 * torch.arange(12.0, dtype=torch.float64)
    objective = Balance(form="kl", reference_weight=0.5, score_scale=3.0)
    there = {"log_prob": NOW, "reference_log_prob": reference}
    without, _ = Balance(form="kl", score_scale=3.0).loss({"log_prob": NOW}, ROWS)
    terms, report = objective.loss(there, ROWS)
    gap = (NOW - reference).view(6, 2).mean(1).repeat_interleave(2)
    assert_close(terms - without, 0.5 * gap**2)
    assert_close(report["reference_gap"], gap)
    assert objective.anchors == ("reference",) and Balance().anchors == ()
    rows, velocity, _, _ = drifted(drift=0.3)
    found = objective.measure(rows, rows.x, velocity, {"reference": velocity.detach()})
    assert_close(found["reference_log_prob"], found["log_prob"].detach())


def published(dv: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-<(x' - μ)²> of today's and of the rollout's mean, from x' = μ_old + S z and μ = μ_old - J dv."""
    return -(S * z + J * dv).square().mean(1), -(S * z).square().mean(1)


def test_the_published_score_is_the_squared_distance_to_the_mean():
    rows, velocity, dv, z = drifted(drift=0.3)
    rows = replace(rows, prompt_slot=torch.zeros_like(rows.prompt_slot))
    now, old = published(dv, z)
    q = (2 * rows.advantages[:, 0]).softmax(0)
    settings = {"score": "published", "score_scale": 5.0, "reward_scale": 2.0}
    kl = Balance(**settings)
    p = (5 * now).softmax(0)
    terms, _ = kl.loss(kl.measure(rows, rows.x, velocity, {}), rows)
    assert_close(terms, (q * (q / p).log()).sum().expand(3))
    # d KL / d s_i = 5 (p_i - q_i), and d s_i / d v = -2 (x' - μ) J / 4 for 4 elements.
    (slope,) = torch.autograd.grad(terms[0], velocity)
    assert_close(slope, (5 * (p - q))[:, None] * -2 * (S * z + J * dv) * J / 4)
    ratio = Balance(form="ratio", **settings)
    moved = 5 * (now - old)
    rho, wanted = (moved - moved.mean()).exp(), (q / p).log()
    terms, _ = ratio.loss(ratio.measure(rows, rows.x, velocity, {}), rows)
    assert_close(terms, torch.maximum(-wanted * rho, -wanted * rho.clamp(0.8, 1.2)))
    plain = Balance(score_scale=5.0, reward_scale=2.0)
    normal = torch.distributions.Normal(rows.old_mean - J * dv, S).log_prob(rows.x_next).mean(1)
    log_p = (5 * normal).log_softmax(0)
    terms, _ = plain.loss(plain.measure(rows, rows.x, velocity, {}), rows)
    assert_close(terms, (q * (q.log() - log_p)).sum().expand(3))


def test_the_published_pull_compares_squared_distances():
    rows, velocity, dv, z = drifted(drift=0.3)
    now, old = published(dv, z)
    objective = Balance(score="published", reference_weight=0.5)
    at_old = {"reference": (velocity - dv).detach()}  # the mean of the rollout again
    _, report = objective.loss(objective.measure(rows, rows.x, velocity, at_old), rows)
    assert_close(report["reference_gap"], now - old)


def test_ratio_norm_of_a_form_without_a_ratio_is_refused():
    with pytest.raises(ValueError, match="form='kl' has none"):
        Balance(form="kl", ratio_norm=True)
