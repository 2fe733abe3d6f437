"""Away from the old policy: each rule's slope against the published formula, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from objectives.forward_rows_of_two_prompts import (
    ADVANTAGE,
    ANCHORS,
    BEST_AND_WORST,
    LEVEL,
    PROMPT,
    ROWS,
    SAMPLE,
    SIGMA,
    STEP,
    TARGET,
    V_OLD,
    V_REF,
    X0,
    errors_of,
    gradient_of,
    mean,
    terms_of,
    weighted_gradient,
)
from thalweg.objectives import Forward
from thalweg.objectives.advantage_map import AdvantageMap
from thalweg.objectives.forward import Pull
from thalweg.objectives.rules import Centred, Implicit, Preference, Ratio, Residual, Weighted
from thalweg.objectives.surrogate import Regression

UNIFORM = Regression(weighting="uniform")
VELOCITY = V_OLD + 0.2 * STEP
AT = SIGMA.view(-1, 1, 1)


def of_groups(values: torch.Tensor) -> torch.Tensor:
    """Means over the samples of a prompt at one level, by a loop."""
    out = torch.empty_like(values)
    for row in range(len(values)):
        out[row] = values[(PROMPT[row] == PROMPT) & (LEVEL[row] == LEVEL)].mean()
    return out


def log_ratio(objective: Forward, to=V_OLD) -> torch.Tensor:
    return errors_of(objective, to) - errors_of(objective, VELOCITY)


@pytest.mark.parametrize("use_ratio", [True, False])
@pytest.mark.parametrize("c", [0.0, 1.0, 0.3])
def test_the_policy_gradient_of_an_elbo_is_the_published_one(c, use_ratio):
    objective = Forward(rule=Weighted(old="old", log_ratio_weight=c, use_ratio=use_ratio))
    d = log_ratio(objective)
    q = d.exp() if use_ratio else torch.ones_like(d)
    expected = weighted_gradient(objective, VELOCITY, q * (ADVANTAGE - c * d))
    assert_close(gradient_of(objective, VELOCITY), expected)


def test_par_has_the_gradient_of_pepg_and_stops_where_the_log_ratio_is_the_advantage():
    objective = Forward(rule=Weighted(old="old", log_ratio_weight=1.0))
    velocity = VELOCITY.clone().requires_grad_()
    d = errors_of(objective, V_OLD) - errors_of(objective, velocity)
    (0.5 * d.detach().exp() * (ADVANTAGE - d).pow(2)).sum().backward()
    assert_close(gradient_of(objective, VELOCITY), velocity.grad)
    there = replace(ROWS, advantages=log_ratio(objective)[:, None])
    assert gradient_of(objective, VELOCITY, there).abs().max() < 1e-15


@pytest.mark.parametrize("use_ratio", [True, False])
def test_the_residual_is_the_published_loss_of_par_and_has_pepgs_slope(use_ratio):
    objective = Forward(rule=Residual(use_ratio=use_ratio))
    pepg = Forward(rule=Weighted(old="old", log_ratio_weight=1.0, use_ratio=use_ratio))
    d = log_ratio(objective)
    q = d.exp() if use_ratio else torch.ones_like(d)
    terms, report = terms_of(objective, VELOCITY)
    assert_close(terms, q / 2 * (ADVANTAGE - d) ** 2)
    assert_close(report["log_ratio"], d)
    assert_close(gradient_of(objective, VELOCITY), gradient_of(pepg, VELOCITY))
    there = replace(ROWS, advantages=d[:, None])
    assert terms_of(objective, VELOCITY, there)[0].abs().max() < 1e-15


def test_a_log_ratio_to_nothing_is_refused():
    with pytest.raises(ValidationError, match="name them in `old`"):
        Weighted(log_ratio_weight=1.0)


def test_the_ratio_is_clipped_on_the_side_that_the_advantage_asks_for():
    objective = Forward(rule=Ratio(clip_range=0.01))
    ratio = log_ratio(objective).exp()
    terms, report = terms_of(objective, VELOCITY)
    held = ((ADVANTAGE > 0) & (ratio > 1.01)) | ((ADVANTAGE < 0) & (ratio < 0.99))
    assert 0 < held.sum() < 16
    expected = torch.maximum(-ADVANTAGE * ratio, -ADVANTAGE * ratio.clamp(0.99, 1.01))
    assert_close(terms, expected)
    assert_close(report["clip_fraction"], held.float())
    slope = weighted_gradient(objective, VELOCITY, ADVANTAGE * ratio * ~held)
    assert_close(gradient_of(objective, VELOCITY), slope)


def test_a_ratio_of_samples_is_that_of_the_mean_error_of_their_levels():
    objective = Forward(rule=Ratio(clip_range=0.01, spans="sample"))
    of_sample = log_ratio(objective).view(8, 2).mean(1).exp().repeat_interleave(2)
    expected = torch.maximum(-ADVANTAGE * of_sample, -ADVANTAGE * of_sample.clamp(0.99, 1.01))
    assert_close(terms_of(objective, VELOCITY)[0], expected)
    one_level = ROWS.index(LEVEL == 0)
    anchors = {name: v[::2] for name, v in ANCHORS.items()}
    for spans in ("level", "sample"):
        rule = Ratio(clip_range=0.01, spans=spans)
        terms, _ = terms_of(Forward(rule=rule), VELOCITY[::2], one_level, anchors)
        assert_close(terms, terms_of(Forward(rule=Ratio(clip_range=0.01)), VELOCITY)[0][::2])


def test_without_old_weights_the_ratio_is_exactly_one():
    objective = Forward(rule=Ratio(old=None))
    terms, report = terms_of(objective, VELOCITY)
    assert objective.anchors == ()
    assert torch.equal(terms, -ADVANTAGE) and (report["log_ratio"] == 0).all()
    assert_close(gradient_of(objective, VELOCITY), weighted_gradient(objective, VELOCITY, ADVANTAGE))


def test_ram_regresses_on_the_references_velocity_plus_the_advantage_times_the_miss_of_the_old():
    pulls = (Pull(to="old", advantage_weight=-1), Pull(to="reference", weight=1))
    ram = Forward(surrogate=UNIFORM, rule=Weighted(), pulls=pulls)
    velocity = VELOCITY.clone().requires_grad_()
    target = V_REF + ADVANTAGE.view(-1, 1, 1) * (TARGET - V_OLD)
    mean((velocity - target) ** 2).sum().backward()
    assert_close(gradient_of(ram, VELOCITY), velocity.grad)


def test_ram_from_the_old_policy_is_nft_whose_beta_is_one_over_its_strength():
    # k [A |v_θ - v|² + (1/k - A) |v_θ - v_old|²], with A = (2r - 1) M of NFT.
    strength, limit = 2.0, 5.0
    pulls = (Pull(to="old", advantage_weight=-1), Pull(to="old", weight=1))
    ram = Forward(surrogate=UNIFORM, advantage=AdvantageMap(scale=strength), rule=Weighted(), pulls=pulls)
    nft = Forward(surrogate=UNIFORM, rule=Implicit(beta=1 / (strength * limit), advantage_max=limit))
    found = gradient_of(ram, VELOCITY)
    assert found.abs().max() > 0.1
    assert_close(found, strength * gradient_of(nft, VELOCITY))


@pytest.mark.parametrize("weighting", ["x", "adaptive"])
def test_advantage_flow_is_least_at_the_weighted_mean_of_sample_old_and_reference(weighting):
    gamma, weight = 1.9, 0.3
    pulls = (
        Pull(to="old", weight=gamma, space="surrogate"),
        Pull(to="reference", weight=weight, space="surrogate"),
    )
    flow = Forward(surrogate=Regression(weighting=weighting), rule=Weighted(), pulls=pulls)
    A = ADVANTAGE.view(-1, 1, 1)
    x, _ = flow.inputs(ROWS)
    guesses = (X0, x - AT * V_OLD, x - AT * V_REF)
    least = (A * guesses[0] + gamma * guesses[1] + weight * guesses[2]) / (A + gamma + weight)
    assert gradient_of(flow, (x - least) / AT).abs().max() < 1e-12
    assert gradient_of(flow, (x - least) / AT + 0.1).abs().max() > 1e-4


def test_a_pull_is_measured_in_the_space_it_names():
    distance = mean((VELOCITY - V_REF) ** 2)
    adaptive = mean((AT * (VELOCITY - TARGET)).abs())
    spaces = {"velocity": distance, "x": SIGMA**2 * distance, "surrogate": SIGMA**2 * distance / adaptive}
    without, _ = terms_of(Forward(rule=Weighted()), VELOCITY)
    for space, expected in spaces.items():
        pull = Pull(to="reference", weight=0.5, advantage_weight=0.1, space=space)
        terms, report = terms_of(Forward(rule=Weighted(), pulls=(pull,)), VELOCITY)
        assert_close(terms - without, (0.5 + 0.1 * ADVANTAGE) * expected)
        assert_close(report["distance/reference"], distance)
    assert Forward(rule=Weighted(), pulls=(Pull(to="reference"),)).anchors == ()


def test_crds_pull_is_stronger_for_better_samples():
    # 0.1 [m + r (1-m)] with m = 1e-3 and r = A/10 + 1/2, in the numbers of the recipe.
    r = ADVANTAGE / 10 + 0.5
    assert_close(0.1 * (1e-3 + r * (1 - 1e-3)), 0.05005 + 0.00999 * ADVANTAGE)


PAIR = Forward(surrogate=UNIFORM, rule=Preference(beta=5.0))


def test_dpo_is_log_two_at_the_reference():
    terms, report = terms_of(PAIR, V_REF)
    assert_close(terms, math.log(2) * BEST_AND_WORST.abs())
    assert (report["error_change/better"] == 0).all() and (report["preference_accuracy"] == 0).all()


def test_dpo_is_the_published_loss_of_the_best_and_the_worst_sample():
    change = errors_of(PAIR, VELOCITY) - errors_of(PAIR, V_REF)
    expected = torch.zeros(16, dtype=torch.float64)
    for level in (0, 1):
        for best, worst in ((2, 0), (4, 7)):  # of prompt 0 and of prompt 1
            margin = change[2 * best + level] - change[2 * worst + level]
            loss = -torch.nn.functional.logsigmoid(-5.0 / 2 * margin)
            expected[[2 * best + level, 2 * worst + level]] = loss
    assert_close(terms_of(PAIR, VELOCITY)[0], expected)


def test_a_real_anchor_adds_the_regression_on_the_better_sample():
    anchored = PAIR.model_copy(update={"rule": PAIR.rule.model_copy(update={"imitation_weight": 0.3})})
    terms, plain = terms_of(anchored, VELOCITY)[0], terms_of(PAIR, VELOCITY)[0]
    assert_close(terms - plain, 0.3 * (BEST_AND_WORST > 0) * errors_of(PAIR, VELOCITY))
    slope = gradient_of(anchored, VELOCITY) - gradient_of(PAIR, VELOCITY)
    assert_close(slope, weighted_gradient(PAIR, VELOCITY, 0.3 * (BEST_AND_WORST > 0)))
    with pytest.raises(ValidationError, match="imitation_weight acts on pairs alone"):
        Preference(among="group", imitation_weight=1.0)


def test_given_pairs_that_differ_in_one_coordinate_move_that_one_alone():
    # RealAlign: the worse sample is the better one with a part of it spoiled; both under one level and noise.
    x0, noise, sigma, velocity = X0.clone(), ROWS.noise.clone(), SIGMA.clone(), V_REF.clone()
    expected = torch.zeros_like(x0)
    for level in (0, 1):
        for best, worst in ((2, 0), (4, 7)):
            better, worse = 2 * best + level, 2 * worst + level
            for stored in (x0, noise, sigma, velocity):
                stored[worse] = stored[better]
            x0[worse, 1, 0] += 0.7
            # What a number that both velocities share feels: (beta/4) (∇E_w - ∇E_l) in each row's term.
            expected[better, 1, 0] = 2 * (5.0 / 4) * (2 / 6) * 0.7
    slope = gradient_of(
        PAIR, velocity, replace(ROWS, x0=x0, noise=noise, sigma=sigma), {"reference": velocity}
    )
    for level in (0, 1):
        for best, worst in ((2, 0), (4, 7)):
            shared = slope[2 * best + level] + slope[2 * worst + level]
            assert_close(shared, -expected[2 * best + level])


def test_the_reverse_preference_gives_the_reverse_first_step():
    at = {"reference": V_REF}
    step = gradient_of(PAIR, V_REF, anchors=at)
    reverse = gradient_of(PAIR, V_REF, replace(ROWS, advantages=-ROWS.advantages), at)
    assert step.abs().max() > 0.1
    assert_close(reverse, -step)


def test_a_group_without_a_better_one_has_no_pair():
    flat = torch.where(PROMPT == 0, 0.0, ADVANTAGE)[:, None]
    terms, _ = terms_of(PAIR, VELOCITY, replace(ROWS, advantages=flat))
    assert (terms[:8] == 0).all() and (terms[8:] > 0).sum() == 4


def group(**settings) -> Forward:
    rule = Preference(among="group", beta=5.0, divide_by_beta=True, **settings)
    return Forward(surrogate=UNIFORM, rule=rule)


def test_dgpo_weighs_each_slope_by_how_little_its_group_has_learnt():
    change = errors_of(PAIR, VELOCITY) - errors_of(PAIR, V_REF)
    weight = torch.sigmoid(5.0 * of_groups(ADVANTAGE * change))
    expected = weighted_gradient(PAIR, VELOCITY, weight * ADVANTAGE)
    assert_close(gradient_of(group(), VELOCITY), expected)


def test_dgpo_of_two_samples_is_dpo_over_beta():
    two = replace(ROWS, advantages=BEST_AND_WORST[:, None]).index(BEST_AND_WORST != 0)
    kept = BEST_AND_WORST != 0
    anchors = {"reference": V_REF[kept]}
    whole, _ = terms_of(group(), VELOCITY[kept], two, anchors)
    assert_close(5.0 * whole, terms_of(PAIR, VELOCITY[kept], two, anchors)[0])


def test_dgpos_stop_takes_the_slope_away_and_leaves_the_weights():
    objective = group(stop_range=0.01)
    assert objective.anchors == ("reference", "ema")
    ratio = (errors_of(PAIR, ANCHORS["ema"]) - errors_of(PAIR, VELOCITY)).exp()
    stopped = ((ADVANTAGE > 0) & (ratio > 1.01)) | ((ADVANTAGE <= 0) & (ratio < 0.99))
    assert 0 < stopped.sum() < 16
    change = errors_of(PAIR, VELOCITY) - errors_of(PAIR, V_REF)
    weight = torch.sigmoid(5.0 * of_groups(ADVANTAGE * change))
    expected = weighted_gradient(PAIR, VELOCITY, weight * ADVANTAGE * ~stopped)
    assert_close(gradient_of(objective, VELOCITY), expected)
    assert_close(terms_of(objective, VELOCITY)[0], terms_of(group(), VELOCITY)[0])
    with pytest.raises(ValidationError, match="acts on groups alone"):
        Preference(stop_range=0.01)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_crd_regresses_centred_implied_rewards_on_centred_given_ones(beta):
    objective = Forward(rule=Centred(beta=beta))
    gain, r = log_ratio(objective), ADVANTAGE / 10 + 0.5
    gap = beta * (gain - of_groups(gain)) - (r - of_groups(r))
    assert_close(terms_of(objective, VELOCITY)[0], 5 / beta * gap**2)
    # The mean of the implied rewards has no slope.
    expected = weighted_gradient(objective, VELOCITY, -2 * 5 * gap)
    assert_close(gradient_of(objective, VELOCITY), expected)


def test_crd_is_done_where_implied_rewards_differ_as_the_given_ones_do():
    objective = Forward(rule=Centred(beta=2.0, advantage_max=50.0))
    gain = log_ratio(objective)
    constant = 0.01 * PROMPT + 0.02 * LEVEL  # of a prompt and level: centring removes it
    rewards = 100 * (2 * gain + constant)
    terms, _ = terms_of(objective, VELOCITY, replace(ROWS, advantages=rewards[:, None]))
    assert terms.max() < 1e-20
    batch = Forward(rule=Centred(beta=2.0, advantage_max=50.0, centre="batch"))
    assert terms_of(batch, VELOCITY, replace(ROWS, advantages=rewards[:, None]))[0].max() > 1e-5


def test_crd_may_compare_by_cross_entropy():
    objective = Forward(rule=Centred(match="cross_entropy"))
    gain, r = log_ratio(objective), ADVANTAGE / 10 + 0.5
    p, q = (gain - of_groups(gain)).sigmoid(), (r - of_groups(r)).sigmoid()
    assert_close(terms_of(objective, VELOCITY)[0], -5 * (q * p.log() + (1 - q) * (1 - p).log()))


def copies_by_hand(gain: torch.Tensor, r: torch.Tensor, counts: list[torch.Tensor]) -> torch.Tensor:
    """5 (g - mean g - [r - mean r])² for beta = 1 and M = 5, means weighted over a prompt's rows of a level,
    averaged over copies; by a loop.
    """
    terms = torch.zeros_like(gain)
    for row in range(16):
        mates = (PROMPT[row] == PROMPT) & (LEVEL[row] == LEVEL)
        for count in counts:
            p = count[mates] / count[mates].sum()
            gap = gain[row] - (p * gain[mates]).sum() - (r[row] - (p * r[mates]).sum())
            terms[row] += 5 * gap**2 / len(counts)
    return terms


def test_crd_may_centre_among_the_good_and_among_the_bad_samples():
    objective = Forward(rule=Centred(temperature=0.1))
    gain, r = log_ratio(objective), ADVANTAGE / 10 + 0.5
    expected = copies_by_hand(gain, r, [(r / 0.1).exp(), (-r / 0.1).exp()])
    terms, _ = terms_of(objective, VELOCITY)
    assert_close(terms, expected)
    plain, _ = terms_of(Forward(rule=Centred()), VELOCITY)
    assert (terms - plain).abs().max() > 1e-3
    hot, _ = terms_of(Forward(rule=Centred(temperature=1e7)), VELOCITY)
    assert_close(hot, plain)
    # Two numbers: g = 1 and 0, r = .8 and .2; one copy centres nearly at the first, the other at the second.
    two = replace(ROWS, advantages=torch.tensor([[3.0], [-3.0]], dtype=torch.float64).repeat(8, 1))
    two = replace(two.index(torch.tensor([0, 1])), step=torch.zeros(2, dtype=torch.int64))
    g = {"error": torch.tensor([0.0, 1.0]).double(), "old_error": torch.ones(2).double()}
    cold = Centred(temperature=1e-3).loss(g, two.advantages[:, 0], two)[0]
    assert_close(cold, 5 * torch.tensor([0.0 + 0.4**2, 0.4**2 + 0.0]).double() / 2)


def test_the_slope_of_weighted_centring_leaves_the_means_out():
    objective = Forward(rule=Centred(temperature=0.1))
    gain, r = log_ratio(objective), ADVANTAGE / 10 + 0.5
    gap = torch.zeros(16, dtype=torch.float64)
    for sign in (1, -1):
        p = (sign * r / 0.1).exp()
        gap += (gain - of_groups(p * gain) / of_groups(p) - r + of_groups(p * r) / of_groups(p)) / 2
    assert_close(gradient_of(objective, VELOCITY), weighted_gradient(objective, VELOCITY, -2 * 5 * gap))


def test_at_temperature_zero_crd_centres_in_the_pools_of_good_and_of_bad_samples():
    objective = Forward(rule=Centred(temperature=0.0))
    gain, r = log_ratio(objective), ADVANTAGE / 10 + 0.5
    good, bad = (ADVANTAGE > 0).double(), (ADVANTAGE < 0).double()
    assert_close(terms_of(objective, VELOCITY)[0], copies_by_hand(gain, r, [good, bad]))
    # A pool without samples is the whole group.
    better = replace(ROWS, advantages=ADVANTAGE.abs()[:, None])
    r = ADVANTAGE.abs() / 10 + 0.5
    whole = torch.ones(16, dtype=torch.float64)
    assert_close(terms_of(objective, VELOCITY, better)[0], copies_by_hand(gain, r, [whole, whole]))
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Centred(temperature=-1.0)


def test_rows_of_weight_zero_do_not_move_weighted_means():
    order = torch.cat([torch.arange(16), torch.tensor([3, 8])])
    padded = replace(ROWS.index(order), weight=torch.cat([torch.ones(16), torch.zeros(2)]).double())
    anchors = {name: v[order] for name, v in ANCHORS.items()}
    for temperature in (0.0, 0.1):
        objective = Forward(rule=Centred(temperature=temperature))
        terms, _ = terms_of(objective, VELOCITY[order], padded, anchors)
        whole, _ = terms_of(objective, VELOCITY)
        assert_close(terms, torch.cat([whole, torch.zeros(2)]))


def test_what_a_rule_compares_with_is_asked_for_once():
    pulls = (Pull(to="old", weight=1), Pull(to="reference", weight=1))
    assert Forward(rule=Ratio(), pulls=pulls).anchors == ("old", "reference")
    assert {s: Forward(rule=Ratio(spans=s)).unit for s in ("level", "sample")} == {
        "level": "row",
        "sample": "sample",
    }
    assert [Forward(rule=r).unit for r in (PAIR.rule, group().rule, Centred())] == ["pair", "group", "group"]


ELBO = Regression(weighting="elbo")


@pytest.mark.parametrize(
    ("sigmas", "lowest"),
    [
        ({"kind": "stratified", "sigma_min": 0.0}, "0"),
        ({"kind": "stratified", "sigma_min": 0.009}, "0.009"),
        # 0.5 u / (1 - 0.5 u) of 0.012
        ({"kind": "stratified", "sigma_min": 0.012, "shift": 0.5}, "0.0060362"),
        ({"kind": "logit_normal"}, "0"),
        ({"kind": "logit_normal", "sigma_min": 0.005}, "0.005"),
    ],
    ids=str,
)
def test_an_elbo_near_the_data_is_refused(sigmas, lowest):
    with pytest.raises(ValidationError, match=f"may go down to {lowest}.*sigmas.sigma_min=0.01 or more"):
        Forward(surrogate=ELBO, rule=Residual(), sigmas=sigmas)
    above = sigmas | {"sigma_min": 0.02}
    assert Forward(surrogate=ELBO, rule=Residual(), sigmas=above).sigmas.lowest >= 0.0099
    assert Forward(rule=Residual(), sigmas=sigmas).sigmas.lowest < 0.01


def test_an_elbo_of_one_model_alone_is_refused():
    with pytest.raises(ValidationError, match=r"name weights in rule\.old"):
        Forward(surrogate=ELBO, rule=Weighted())
    for rule in (Weighted(old="old"), Ratio(old=None)):
        Forward(surrogate=ELBO, rule=rule)


def test_samples_of_a_pair_are_told_by_number():
    assert SAMPLE[BEST_AND_WORST > 0].unique().tolist() == [2, 4]


@pytest.mark.parametrize(
    "rule",
    [
        Weighted(old="old", log_ratio_weight=1.0),
        Residual(),
        Ratio(),
        Ratio(spans="sample"),
        Preference(),
        Preference(among="group", stop_range=0.01, stop="ema"),
        Centred(),
        Centred(temperature=0.1),
    ],
    ids=str,
)
def test_what_the_policy_is_compared_with_has_no_slope(rule):
    anchors = {name: v.clone().requires_grad_() for name, v in ANCHORS.items()}
    terms, report = terms_of(Forward(rule=rule), VELOCITY.clone().requires_grad_(), anchors=anchors)
    found = torch.autograd.grad(terms.sum(), list(anchors.values()), allow_unused=True)
    assert all(slope is None or (slope == 0).all() for slope in found)
    assert not any(u.requires_grad for u in report.values())
