"""Data N(0, 1) and reward k x0: the tilted density is N(k, 1), and everything has a closed form.

With D = (1-σ)² + σ² the base flow is x (2σ-1)/D, Cov(k x0, v | x) = -σ k/D, and base + Cov is the flow of
N(k, 1).
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from thalweg.core.values import Samples
from thalweg.objectives import Forward
from thalweg.objectives.forward import Pull
from thalweg.objectives.rules import Implicit, Weighted
from thalweg.objectives.surrogate import Regression

UNIFORM = Regression(weighting="uniform")
K = 0.7
NODES, MASS = (torch.tensor(t) for t in np.polynomial.hermite_e.hermegauss(6))


def base(x, sigma):
    return x * (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)


def expected_slope(
    objective: Forward, x: float, sigma: float, found: float, old=None, reward=lambda x0: K * x0
):
    """d E[L | x] / d velocity at (x, σ), where the policy's velocity is `found`; the old policy's is the
    base.
    """
    return moments(objective, x, sigma, found, reward)[0]


def moments(objective: Forward, x: float, sigma: float, found: float, reward=lambda x0: K * x0):
    """Mean and variance over x0 given x of the slope of a row's term."""
    spread = (1 - sigma) ** 2 + sigma**2
    x0 = (1 - sigma) * x / spread + sigma / spread**0.5 * NODES  # x0 given x is normal
    count = len(x0)
    rows = Samples(
        x0=x0[:, None],
        sigma=torch.full((count,), sigma, dtype=torch.float64),
        noise=((x - (1 - sigma) * x0) / sigma)[:, None],
        advantages=reward(x0)[:, None],
        weight=MASS / MASS.sum(),
        **{
            name: torch.zeros(count, dtype=torch.int64)
            for name in ("condition", "prompt_slot", "seed_group", "sample", "step")
        },
    )
    velocity = torch.full((count, 1), found, dtype=torch.float64, requires_grad=True)
    anchor = torch.full((count, 1), base(x, sigma), dtype=torch.float64)
    at, _ = objective.inputs(rows)
    assert_close(at, torch.full_like(at, x))
    scalars = objective.measure(rows, at, velocity, {"old": anchor, "reference": anchor})
    objective.loss(scalars, rows)[0].sum().backward()
    share = rows.weight
    slopes = velocity.grad[:, 0] / share
    mean = float((share * slopes).sum())
    return mean, float((share * (slopes - mean) ** 2).sum())


POINTS = [(0.3, 0.2), (-1.1, 0.5), (2.0, 0.9)]


@pytest.mark.parametrize(("x", "sigma"), POINTS)
def test_ram_wants_the_flow_of_the_tilted_density(x, sigma):
    pulls = (Pull(to="old", advantage_weight=-1), Pull(to="reference", weight=1))
    ram = Forward(surrogate=UNIFORM, rule=Weighted(), pulls=pulls)
    spread = (1 - sigma) ** 2 + sigma**2
    assert expected_slope(ram, x, sigma, base(x, sigma) - sigma * K / spread) == pytest.approx(0, abs=1e-12)
    # That is the flow of N(k, 1), which base(·) follows around its mean.
    tilted = base(x - (1 - sigma) * K, sigma) - K
    assert base(x, sigma) - sigma * K / spread == pytest.approx(tilted)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
@pytest.mark.parametrize(("x", "sigma"), POINTS)
def test_nft_wants_a_covariance_over_beta_beyond_the_old_policy(x, sigma, beta):
    limit = 20.0  # larger than any reward at the nodes
    nft = Forward(surrogate=UNIFORM, rule=Implicit(beta=beta, advantage_max=limit))
    spread = (1 - sigma) ** 2 + sigma**2
    wanted = base(x, sigma) - sigma * K / spread / (beta * limit)
    assert expected_slope(nft, x, sigma, wanted) == pytest.approx(0, abs=1e-10)
    assert abs(expected_slope(nft, x, sigma, wanted + 0.01)) > 1e-3


@pytest.mark.parametrize(("x", "sigma"), POINTS)
def test_a_constant_anchor_wants_the_flow_of_the_reweighted_density(x, sigma):
    gamma = 3.0
    flow = Forward(surrogate=UNIFORM, rule=Weighted(), pulls=(Pull(to="old", weight=gamma),))
    spread = (1 - sigma) ** 2 + sigma**2
    mean_reward = K * (1 - sigma) * x / spread
    wanted = base(x, sigma) - sigma * K / spread / (gamma + mean_reward)
    assert expected_slope(flow, x, sigma, wanted) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("x", "sigma"), POINTS)
@pytest.mark.parametrize(
    "objective",
    [
        Forward(surrogate=UNIFORM, rule=Weighted()),
        Forward(surrogate=UNIFORM, rule=Weighted(old="old", log_ratio_weight=0.0)),
        Forward(surrogate=UNIFORM, rule=Implicit()),
        Forward(surrogate=UNIFORM, rule=Weighted(), pulls=(Pull(to="old", weight=1.1),)),
    ],
    ids=lambda o: f"{o.rule.kind} {o.anchors}",
)
def test_the_same_advantage_for_all_moves_a_calibrated_policy_nowhere_on_average(objective, x, sigma):
    slope = expected_slope(objective, x, sigma, base(x, sigma), reward=torch.ones_like)
    assert slope == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("x", "sigma"), POINTS)
def test_an_anchor_has_the_mean_slope_of_the_regression_and_none_of_its_variance(x, sigma):
    # Var[v | x] = 1/D, and the slope of <(x̂0 - x0)²> is 2 σ² (v_θ - v).
    spread, away = (1 - sigma) ** 2 + sigma**2, base(x, sigma) + 0.3
    x_space = Regression(weighting="x")
    regression = Forward(surrogate=x_space, rule=Weighted())
    anchor = Forward(
        surrogate=x_space, rule=Weighted(), pulls=(Pull(to="old", weight=1.0, space="surrogate"),)
    )
    mean, variance = moments(regression, x, sigma, away, torch.ones_like)
    assert (mean, variance) == pytest.approx((0.6 * sigma**2, 4 * sigma**4 / spread))
    held, noise = moments(anchor, x, sigma, away, torch.zeros_like)
    assert held == pytest.approx(mean) and noise < 1e-20


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize(("x", "sigma"), POINTS)
def test_nft_of_nothing_but_good_samples_stays_on_average_and_is_noisy(x, sigma, beta):
    # r = 1: M/β |v+ - v|², whose slope at v_old is 2 M (v_old - v); with r = 1/2 it cancels in each row.
    nft, at = Forward(surrogate=UNIFORM, rule=Implicit(beta=beta, advantage_max=5.0)), base(x, sigma)
    spread = (1 - sigma) ** 2 + sigma**2
    mean, variance = moments(nft, x, sigma, at, lambda x0: 5 * torch.ones_like(x0))
    assert mean == pytest.approx(0, abs=1e-10)
    assert variance == pytest.approx(4 * 25 / spread)
    assert moments(nft, x, sigma, at, torch.zeros_like) == (0, 0)


@pytest.mark.parametrize(("x", "sigma"), POINTS)
def test_the_covariance_estimates_the_tilt_with_a_variance_where_slopes_have_none(x, sigma):
    # x0 = m + s n with s² = σ²/D, and v - v_old = -s n/σ: k (m + s n) (-s n/σ) has mean -k σ/D and variance
    # k² (m²/D + 2 σ²/D²). Slopes of k x0 are k in every sample.
    pulls = (Pull(to="old", advantage_weight=-1), Pull(to="reference", weight=1))
    ram = Forward(surrogate=UNIFORM, rule=Weighted(), pulls=pulls)
    spread = (1 - sigma) ** 2 + sigma**2
    m = (1 - sigma) * x / spread
    mean, variance = moments(ram, x, sigma, base(x, sigma))
    assert mean == pytest.approx(2 * K * sigma / spread)
    assert variance == pytest.approx(4 * K**2 * (m**2 / spread + 2 * sigma**2 / spread**2))
