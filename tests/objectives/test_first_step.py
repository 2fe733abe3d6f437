"""Before its first update every method steps along A ∇E; they differ in what comes after."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from objectives.forward_rows_of_two_prompts import (
    ADVANTAGE,
    BEST_AND_WORST,
    ROWS,
    V_OLD,
    gradient_of,
    weighted_gradient,
)
from thalweg.objectives import Forward
from thalweg.objectives.advantage_map import AdvantageMap
from thalweg.objectives.rules import Centred, Implicit, Preference, Ratio, Residual, Weighted
from thalweg.objectives.surrogate import Huber, Regression
from thalweg.training.recipe.load import load_recipe, recipe_names

# The factor of ∇E in each row; a pair's term stands in both of its rows, so that its (β/4) counts twice;
# recipes that draw their pairs divide β out.
FACTORS = {
    "diffusion-nft": ADVANTAGE,
    "e2po": ADVANTAGE,
    "creflow": ADVANTAGE,  # without regions
    "omninft": ADVANTAGE,
    "sol-rl": ADVANTAGE,
    "awm": ADVANTAGE / 5,
    "v-grpo": ADVANTAGE,
    "elbo-epg": ADVANTAGE / 10,
    "elbo-pepg": ADVANTAGE / 10,
    "elbo-par": ADVANTAGE / 10,
    "advantage-flow": ADVANTAGE.clamp(-1, 1),
    "ram": ADVANTAGE,
    "crd": ADVANTAGE,
    "dgpo": ADVANTAGE / 2,
    "online-dpo": 2 / 4 * BEST_AND_WORST,
    "diffusion-apo": 2 / 4 * BEST_AND_WORST,
    "diffusion-apo-half-online": 2 / 4 * BEST_AND_WORST,
    "diffusion-dpo": 2 * 5000 / 4 * BEST_AND_WORST,
    # Besides the pair, a real anchor of weight 1 on the better sample.
    "realalign": 2 * 500 / 4 * BEST_AND_WORST + (BEST_AND_WORST > 0),
}
HERE = dict.fromkeys(("old", "sampling", "reference", "ema"), V_OLD)


def forward_recipes() -> dict[str, Forward]:
    found = {name: load_recipe(name).objective for name in recipe_names()}
    return {name: objective for name, objective in found.items() if isinstance(objective, Forward)}


OBJECTIVES = forward_recipes()


def test_every_forward_recipe_is_looked_at():
    assert set(OBJECTIVES) == set(FACTORS)


@pytest.mark.parametrize("name", FACTORS)
def test_the_first_step_goes_along_the_advantage_times_the_slope_of_the_error(name):
    objective = OBJECTIVES[name]
    got = gradient_of(objective, V_OLD, anchors=HERE)
    assert_close(got, weighted_gradient(objective, V_OLD, FACTORS[name]), rtol=1e-9, atol=1e-9)


def test_the_first_step_of_v_grpo_with_soft_advantages_goes_along_their_tanh():
    v_grpo = OBJECTIVES["v-grpo"]
    for limit in (0.5, 3.0):
        soft = AdvantageMap(shape="tanh", limit=limit)
        objective = v_grpo.model_copy(update={"advantage": soft})
        slope = weighted_gradient(objective, V_OLD, limit * torch.tanh(ADVANTAGE / limit))
        assert_close(gradient_of(objective, V_OLD, anchors=HERE), slope, rtol=1e-9, atol=1e-9)


SURROGATES = [
    *(Regression(weighting=w) for w in ("uniform", "sigma", "x", "adaptive", "adaptive_velocity", "elbo")),
    Huber(power=0.25),
    Huber(power=1.0),
]
RULES = [
    *(Implicit(beta=beta) for beta in (0.1, 1.0, 2.0)),
    Weighted(),
    Weighted(old="old"),
    Weighted(old="old", log_ratio_weight=0.5, use_ratio=False),
    Residual(),
    Ratio(),
    Ratio(old=None),
    Ratio(spans="sample", clip_range=1.0),
    *(Centred(beta=beta) for beta in (0.1, 1.0, 2.0)),
    Preference(among="group", divide_by_beta=True, stop_range=0.01),
]


# An ELBO of one model alone is refused.
PAIRS = [(r, s) for r in RULES for s in SURROGATES if (r, s) != (Weighted(), Regression(weighting="elbo"))]


@pytest.mark.parametrize(("rule", "surrogate"), PAIRS, ids=str)
def test_it_does_for_every_rule_with_every_surrogate(rule, surrogate):
    objective = Forward(surrogate=surrogate, rule=rule)
    factor = ADVANTAGE / 2 if isinstance(rule, Preference) else ADVANTAGE
    slope = weighted_gradient(objective, V_OLD, factor)
    assert_close(gradient_of(objective, V_OLD, anchors=HERE), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FACTORS)
def test_a_constant_reward_gives_no_step_at_all(name):
    flat = replace(ROWS, advantages=torch.zeros_like(ROWS.advantages))
    assert gradient_of(OBJECTIVES[name], V_OLD, flat, HERE).abs().max() < 1e-15


@pytest.mark.parametrize("name", FACTORS)
def test_rows_of_weight_zero_change_nothing_for_the_others(name):
    order = torch.cat([torch.arange(16), torch.tensor([3, 8])])
    padded = replace(ROWS.index(order), weight=torch.cat([torch.ones(16), torch.zeros(2)]).double())
    there = {key: velocity[order] + 0.1 * n for n, (key, velocity) in enumerate(HERE.items())}
    here = {key: velocity[:16] for key, velocity in there.items()}
    whole = gradient_of(OBJECTIVES[name], V_OLD + 0.05, anchors=here)
    got = gradient_of(OBJECTIVES[name], (V_OLD + 0.05)[order], padded, there)
    assert_close(got[:16], whole, rtol=1e-9, atol=1e-12)
    assert (got[16:] == 0).all()


@pytest.mark.parametrize("name", FACTORS)
def test_the_order_of_rows_permutes_the_gradient(name):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    there = {key: velocity + 0.1 * n for n, (key, velocity) in enumerate(HERE.items())}
    whole = gradient_of(OBJECTIVES[name], V_OLD + 0.05, anchors=there)
    shuffled = {key: velocity[order] for key, velocity in there.items()}
    got = gradient_of(OBJECTIVES[name], (V_OLD + 0.05)[order], ROWS.index(order), shuffled)
    assert_close(got, whole[order], rtol=1e-9, atol=1e-12)
