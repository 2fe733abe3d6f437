import numpy as np
import pytest
import torch
from torch.testing import assert_close

from objectives.forward_rows_of_two_prompts import SIGMA, STEP, mean
from thalweg.objectives.surrogate import Huber, Regression

AT = SIGMA.view(-1, 1, 1)
# Errors of x̂0, which lies -σ (v_θ - v) from x0, and sums over the 6 latent elements.
EXPECTED = {
    "uniform": mean(STEP**2),
    "sigma": SIGMA * mean(STEP**2),
    "x": mean((AT * STEP) ** 2),
    "adaptive": mean((AT * STEP) ** 2) / mean((AT * STEP).abs()),
    "adaptive_velocity": mean(STEP**2) / mean(STEP.abs()),
    "elbo": (1 - SIGMA) / SIGMA * STEP.pow(2).sum((1, 2)),
}


@pytest.mark.parametrize("weighting", EXPECTED)
def test_an_error_is_the_published_one(weighting):
    assert_close(Regression(weighting=weighting).error(STEP, SIGMA), EXPECTED[weighting])


def test_huber_is_the_published_power_of_the_squared_error():
    loss = mean(STEP**2)
    assert_close(Huber(power=0.25).error(STEP, SIGMA), 4 * SIGMA * ((loss + 1e-10) ** 0.25 - 1e-10**0.25))
    assert_close(Huber(power=0.5).error(STEP, SIGMA) / 2, SIGMA * ((loss + 1e-10).sqrt() - 1e-5))
    assert_close(Huber(power=1.0).error(STEP, SIGMA), SIGMA * loss)


@pytest.mark.parametrize(
    "surrogate", [*(Regression(weighting=w) for w in EXPECTED), Huber(power=0.25)], ids=str
)
def test_the_slope_is_the_weight_times_that_of_the_squared_error(surrogate):
    residual = STEP.clone().requires_grad_()
    surrogate.error(residual, SIGMA).sum().backward()
    weight = surrogate.weight(residual, SIGMA)
    assert not weight.requires_grad
    assert_close(residual.grad, weight.view(-1, 1, 1) * 2 * STEP / 6)


def test_a_perfect_prediction_is_not_divided_by_zero():
    for surrogate in (Regression(), Regression(weighting="adaptive_velocity"), Huber()):
        residual = torch.zeros_like(STEP).requires_grad_()
        error = surrogate.error(residual, SIGMA)
        error.sum().backward()
        assert (error == 0).all() and (residual.grad == 0).all()


def velocity(x, sigma, center, variance):
    """E[ε - x0 | x] for x0 ~ N(center, variance)."""
    spread = (1 - sigma) ** 2 * variance + sigma**2
    return -center + (sigma - (1 - sigma) * variance) / spread * (x - (1 - sigma) * center)


def difference_of_errors(weighting: str, x0: float) -> float:
    """E[E_b - E_a] of the exact flows of a = N(.5, .6) and b = N(-.2, 1.5), σ uniform, by quadrature."""
    at, of_sigma = np.polynomial.legendre.leggauss(200)
    nodes, of_noise = np.polynomial.hermite_e.hermegauss(4)  # exact: errors are quadratic in ε
    axes = (torch.tensor((at + 1) / 2), torch.tensor(nodes))
    sigma, noise = (t.flatten() for t in torch.meshgrid(axes, indexing="ij"))
    weight = torch.outer(torch.tensor(of_sigma / 2), torch.tensor(of_noise / of_noise.sum())).flatten()
    x, target = (1 - sigma) * x0 + sigma * noise, noise - x0
    surrogate = Regression(weighting=weighting)
    a, b = (
        surrogate.error((velocity(x, sigma, *law) - target)[:, None], sigma)
        for law in ((0.5, 0.6), (-0.2, 1.5))
    )
    return float((weight * (b - a)).sum())


@pytest.mark.parametrize("x0", [1.3, -0.4, 0.0])
def test_the_elbo_of_exact_flows_differs_by_the_log_ratio_of_their_densities(x0):
    a, b = (torch.distributions.Normal(m, s**0.5) for m, s in ((0.5, 0.6), (-0.2, 1.5)))
    ratio = float(a.log_prob(torch.tensor(x0, dtype=torch.float64)) - b.log_prob(torch.tensor(x0)))
    assert difference_of_errors("elbo", x0) == pytest.approx(ratio, abs=1e-5)


def test_other_weightings_have_the_sign_of_the_log_ratio_and_another_scale():
    assert difference_of_errors("elbo", 1.3) == pytest.approx(0.674812, abs=1e-5)
    assert difference_of_errors("uniform", 1.3) == pytest.approx(1.147, abs=1e-3)
    assert difference_of_errors("x", 1.3) == pytest.approx(0.597, abs=1e-3)
