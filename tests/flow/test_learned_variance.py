import pytest
import torch
from pydantic import TypeAdapter
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.flow import DPMSolverSDE, Kernel, LearnedVariance, Prediction, sigma_from_alpha_bar

SIGMA = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
SIGMA_NEXT = torch.tensor([0.8, 0.4, 0.1], dtype=torch.float64)


def latents(seed: int) -> torch.Tensor:
    """3 samples of 2 x 4 numbers."""
    return torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(velocity: torch.Tensor, fraction: torch.Tensor, sigma=SIGMA, sigma_next=SIGMA_NEXT, factor=1.0):
    return LearnedVariance().transition(latents(0), Prediction(velocity, fraction), sigma, sigma_next, factor)


def test_the_variance_lies_between_the_two_of_ddpm_on_a_logarithmic_scale():
    # ᾱ falls from 0.5 to 0.2 in this step of the forward process: β = 1 - 0.2/0.5 and β̃ = 0.5/0.8 β.
    before, after = torch.tensor([0.2, 0.5], dtype=torch.float64).sqrt()
    sigma, sigma_next = (sigma_from_alpha_bar(alpha**2).item() for alpha in (before, after))
    scale = (after + (1 - after**2).sqrt()).item()  # from the flow's state to the variance-preserving one
    for fraction, variance in ((1.0, 0.6), (0.0, 0.375), (0.5, (0.6 * 0.375) ** 0.5), (2.0, 0.6**2 / 0.375)):
        got = step(latents(1), torch.full((3, 2, 4), fraction).double(), sigma, sigma_next)
        assert_close((got.std * scale) ** 2, torch.full((3, 2, 4), variance).double())


def test_the_mean_is_that_of_the_ddpm_posterior_and_so_is_the_smaller_variance():
    posterior = DPMSolverSDE().transition(latents(0), latents(1), SIGMA, SIGMA_NEXT)
    policy = step(latents(1), torch.zeros(3, 2, 4).double())
    assert_close(policy.mean, posterior.mean)
    assert_close(policy.std, posterior.std[:, None, None].expand(3, 2, 4))
    assert_close(step(latents(1), latents(2)).mean, posterior.mean)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_prob_and_kl_are_those_of_a_normal_distribution_for_each_element(reduction):
    policy, other = step(latents(1), latents(2)), step(latents(3), latents(4))
    p, q = Normal(policy.mean, policy.std), Normal(other.mean, other.std)
    elements = p.log_prob(latents(5)).flatten(1)
    assert_close(policy.log_prob(latents(5), reduction), getattr(elements, reduction)(1))
    assert_close(policy.kl(other, reduction), getattr(kl_divergence(p, q).flatten(1), reduction)(1))


def test_gradients_reach_the_mean_and_the_variance():
    # z = (x' - mean)/s: d log p / d mean = z/s and d log p / d log s = z² - 1, each over d = 8 elements.
    velocity, fraction, z = latents(1).requires_grad_(), latents(2).requires_grad_(), latents(3)
    policy = step(velocity, fraction)
    policy.log_prob(policy.sample(z)).sum().backward()
    assert velocity.grad is not None and fraction.grad is not None
    assert_close(velocity.grad, -policy.J[:, None, None] * z / (policy.std.detach() * 8), atol=1e-9, rtol=0)
    smaller, larger = (step(latents(1), torch.full((3, 2, 4), at).double()).std for at in (0.0, 1.0))
    assert_close(fraction.grad, (z**2 - 1) * (larger / smaller).log() / 8, atol=1e-9, rtol=0)


def test_a_noise_factor_multiplies_the_standard_deviation_and_leaves_the_mean():
    factor = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    plain, scaled = step(latents(1), latents(2)), step(latents(1), latents(2), factor=factor)
    assert_close(scaled.std, factor[:, None, None] * plain.std)
    assert_close(scaled.mean, plain.mean)


def test_the_first_step_is_finite_and_the_last_is_clean_with_finite_gradients():
    fraction = latents(2).requires_grad_()
    sigma, sigma_next = torch.tensor([1.0, 1.0, 0.2]).double(), torch.tensor([0.9, 0.5, 0.0]).double()
    policy = step(latents(1), fraction, sigma, sigma_next)
    policy.sample(latents(3)).sum().backward()
    assert (policy.std[:2] > 0).all() and policy.std[:2].isfinite().all()
    assert torch.equal(policy.std[2], torch.zeros(2, 4).double())
    assert_close(policy.mean[2], latents(0)[2] - 0.2 * latents(1)[2])
    assert fraction.grad is not None and fraction.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"std=0 at sigma=0\.2 -> 0: a log-probability needs"):
        policy.log_prob(latents(3))


def test_a_model_that_predicts_the_velocity_alone_is_refused_in_one_line():
    kernel = TypeAdapter(Kernel).validate_python({"kind": "learned_variance"})
    with pytest.raises(
        UserError, match=r"'learned_variance' reads a second output .* choose dpm_sde"
    ) as error:
        kernel.transition(latents(0), latents(1), SIGMA, SIGMA_NEXT)
    assert "\n" not in str(error.value)
