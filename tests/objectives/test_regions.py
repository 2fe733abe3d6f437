"""Advantages with places of their own, and corrected samples, in float64."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from objectives.forward_rows_of_two_prompts import (
    ADVANTAGE,
    ANCHORS,
    NOISE,
    ROWS,
    STEP,
    V_OLD,
    X0,
    gradient_of,
    mean,
    terms_of,
)
from thalweg.core.forest import Advantages
from thalweg.core.values import Prompt
from thalweg.objectives import Forward
from thalweg.objectives.forward import Pull
from thalweg.objectives.forward_rows import samples
from thalweg.objectives.rules import Implicit, Ratio, Residual, Weighted
from thalweg.objectives.sigma_draw import Stratified
from thalweg.objectives.surrogate import Huber, Regression, mean_over_latents, squared
from thalweg.rollout import Deterministic, Rollout, Root, grow

VELOCITY = V_OLD + 0.2 * STEP
FIRST = torch.zeros(3, 2, dtype=torch.float64)
FIRST[0] = 1
SURROGATES = [
    *(Regression(weighting=w) for w in ("uniform", "x", "adaptive", "adaptive_velocity")),
    Huber(power=0.25),
]


def with_regions(*regions, advantages=None):
    """The rows with these regions of the latents (3, 2) for each advantage."""
    count = len(regions)
    given = ADVANTAGE[:, None].expand(-1, count) if advantages is None else advantages
    return replace(ROWS, regions=torch.stack(regions).expand(16, -1, -1, -1), advantages=given)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
@pytest.mark.parametrize("rule", [Implicit(), Weighted(old="old"), Residual(), Ratio()], ids=str)
def test_a_region_of_everything_is_no_region(rule, surrogate):
    objective = Forward(surrogate=surrogate, rule=rule, pulls=(Pull(to="reference", weight=0.1),))
    whole = with_regions(torch.ones(3, 2, dtype=torch.float64))
    assert_close(terms_of(objective, VELOCITY, whole)[0], terms_of(objective, VELOCITY)[0])
    assert_close(gradient_of(objective, VELOCITY, whole), gradient_of(objective, VELOCITY))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
def test_a_region_sees_its_own_latents_alone(surrogate):
    # As if the other latents were not there.
    objective = Forward(surrogate=surrogate, rule=Implicit())
    found = gradient_of(objective, VELOCITY, with_regions(FIRST))
    few = replace(ROWS, x0=X0[:, :1], noise=NOISE[:, :1])
    cut = {name: v[:, :1] for name, v in ANCHORS.items()}
    assert_close(found[:, :1], gradient_of(objective, VELOCITY[:, :1], few, cut))
    assert (found[:, 1:] == 0).all()


def test_each_part_follows_its_own_advantage():
    # Two parts with opposite advantages: each one's slope is that of a run of its own, half as large.
    given = torch.stack([ADVANTAGE, -ADVANTAGE], 1)
    rows = with_regions(FIRST, 1 - FIRST, advantages=given)
    objective = Forward(rule=Implicit())
    found = gradient_of(objective, VELOCITY, rows)
    for part, sign in ((slice(0, 1), 1), (slice(1, 3), -1)):
        alone = replace(ROWS, x0=X0[:, part], noise=NOISE[:, part], advantages=sign * ADVANTAGE[:, None])
        cut = {name: v[:, part] for name, v in ANCHORS.items()}
        assert_close(found[:, part], gradient_of(objective, VELOCITY[:, part], alone, cut) / 2)


def test_elements_weigh_in_the_mean_of_their_region():
    values = torch.tensor([[1.0, 2.0, 6.0], [1.0, 1.0, 1.0]])
    weights = torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert mean_over_latents(values, weights).tolist() == [15 / 4, 0.0]
    assert_close(squared(values, weights)[0], torch.tensor((1 + 4 + 72) / 4))
    # An axis of length 1 stands for all.
    assert_close(mean_over_latents(torch.ones(2, 3, 2), torch.ones(2, 1, 2)), torch.ones(2))


def test_corrected_rows_are_plain_regression_in_their_region():
    corrected = torch.arange(16) % 3 == 0
    rows = replace(with_regions(FIRST), corrected=corrected)
    objective = Forward(rule=Implicit(), corrective_weight=0.7)
    terms, report = terms_of(objective, VELOCITY, rows)
    missed = mean((VELOCITY - (NOISE - X0))[:, :1] ** 2)
    plain, _ = terms_of(objective, VELOCITY, with_regions(FIRST))
    assert_close(terms, torch.where(corrected, 0.7 * missed, plain))
    assert_close(report["corrected"], corrected.double())


def test_corrected_samples_stand_in_rows_after_the_others_under_the_same_noise(linear_policy):
    rollout = Rollout(plan=Deterministic(), group_size=3, steps=3)
    roots = [Root(0, group, group, 0) for group in range(3)]
    forest = grow(linear_policy(), [Prompt("a")], roots, rollout, seed=0, iteration=0)
    wanted = torch.full((3, 3), torch.nan)
    wanted[1] = torch.tensor([7.0, 8.0, 9.0])
    given = forest.advantages(torch.arange(3.0)[:, None])
    given = Advantages(given.levels, given.leaves, regions=torch.rand(3, 1, 3), corrected=wanted)
    levels = Stratified(num_sigmas=2)
    rows = samples(forest, given, levels, seed=0, iteration=0, with_corrected=True)
    assert rows.corrected.tolist() == [False] * 6 + [True] * 2
    own = (rows.sample == rows.sample[6]) & ~rows.corrected
    assert own.nonzero().flatten().tolist() == [2, 3]
    assert_close(rows.x0[6:], wanted[[1, 1]])
    for name in ("sigma", "noise", "regions", "condition", "prompt_slot"):
        assert torch.equal(getattr(rows, name)[6:], getattr(rows, name)[own]), name
    assert rows.step.tolist() == [0, 1] * 3 + [2, 3]
    without = samples(forest, given, levels, seed=0, iteration=0)
    assert len(without) == 6 and without.corrected is None
