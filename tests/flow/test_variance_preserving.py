import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from thalweg.flow import (
    DDIM,
    Euler,
    LinearPath,
    alpha_bar_from_sigma,
    from_variance_preserving,
    sigma_from_alpha_bar,
    to_variance_preserving,
    v_prediction_from_velocity,
    velocity_from_noise,
    velocity_from_v_prediction,
)

alpha_bars = st.floats(0.001, 0.999)


def number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def normals(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 3, 4, dtype=torch.float64)


@given(alpha_bar=alpha_bars)
def test_a_variance_preserving_path_is_the_line_from_data_to_noise_rescaled(alpha_bar):
    x0, noise = normals(2)
    sigma = sigma_from_alpha_bar(number(alpha_bar))
    assert_close(alpha_bar_from_sigma(sigma), number(alpha_bar))
    x_vp = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
    x = LinearPath().corrupt(x0, noise, sigma)
    assert_close(to_variance_preserving(x, sigma), x_vp)
    assert_close(from_variance_preserving(x_vp, sigma), x)


def test_the_noise_level_at_which_signal_and_noise_are_equal_is_one_half():
    at = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64)  # √0.1 and √0.9 are 1 to 3
    assert_close(sigma_from_alpha_bar(at), torch.tensor([0.0, 0.5, 0.75, 1.0], dtype=torch.float64))


@given(alpha_bar=alpha_bars)
def test_predictions_of_noise_and_of_v_become_the_velocity_of_the_line(alpha_bar):
    x0, noise = normals(2)
    sigma = sigma_from_alpha_bar(number(alpha_bar))
    x, v = LinearPath().corrupt(x0, noise, sigma), alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * x0
    assert_close(velocity_from_noise(x, noise, sigma), noise - x0)
    assert_close(velocity_from_v_prediction(x, v, sigma), noise - x0)
    assert_close(v_prediction_from_velocity(x, noise - x0, sigma), v)


def test_a_v_prediction_becomes_a_velocity_at_pure_noise_and_at_clean_data():
    x0, noise = normals(2)
    assert_close(velocity_from_v_prediction(noise, -x0, 1.0), noise - x0)
    assert_close(velocity_from_v_prediction(x0, noise, 0.0), noise - x0)


def textbook_ddim(x_vp, noise, z, alpha_bar, alpha_bar_next, eta):
    """Song et al. 2020, Eq. 12 with the σ of Eq. 16."""
    x0 = (x_vp - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
    ratio = (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
    std = eta * ratio**0.5
    return alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next - std**2) ** 0.5 * noise + std * z


@given(alpha_bar=alpha_bars, share=st.floats(0.01, 0.99), eta=st.floats(0, 1))
def test_the_ddim_kernel_is_the_textbook_step_on_the_variance_preserving_state(alpha_bar, share, eta):
    x_vp, noise, z = normals(3)  # a prediction may be any
    alpha_bar_next = alpha_bar + share * (1 - alpha_bar)
    sigma, sigma_next = sigma_from_alpha_bar(number(alpha_bar)), sigma_from_alpha_bar(number(alpha_bar_next))
    x = from_variance_preserving(x_vp, sigma)
    velocity = velocity_from_noise(x, noise, sigma)
    x_next = DDIM(noise_level=eta).transition(x, velocity, sigma, sigma_next).sample(z)
    expected = textbook_ddim(x_vp, noise, z, alpha_bar, alpha_bar_next, eta)
    assert_close(to_variance_preserving(x_next, sigma_next), expected, atol=1e-6, rtol=1e-6)


def test_ddim_without_noise_is_the_euler_step_of_the_flow():
    x_vp, noise, z = normals(3)
    sigma, sigma_next = sigma_from_alpha_bar(number(0.3)), sigma_from_alpha_bar(number(0.4))
    x = from_variance_preserving(x_vp, sigma)
    x_next = Euler().step(x, velocity_from_noise(x, noise, sigma), sigma, sigma_next, None)[0]
    assert_close(to_variance_preserving(x_next, sigma_next), textbook_ddim(x_vp, noise, z, 0.3, 0.4, eta=0.0))
