import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from thalweg.flow import (
    noise_from_velocity,
    score_from_velocity,
    velocity_from_noise,
    velocity_from_score,
    velocity_from_x0,
    x0_from_velocity,
)

inside = st.floats(0.05, 0.95)


@given(sigma=inside)
def test_the_velocity_of_a_line_gives_back_both_ends_of_it(sigma):
    x0, noise = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x = (1 - sigma) * x0 + sigma * noise
    assert_close(x0_from_velocity(x, noise - x0, sigma), x0)
    assert_close(noise_from_velocity(x, noise - x0, sigma), noise)


@given(sigma=inside)
def test_every_reading_of_a_velocity_converts_back_to_it(sigma):
    x, velocity = torch.randn(2, 3, 4, dtype=torch.float64)
    for there, back in (
        (x0_from_velocity, velocity_from_x0),
        (noise_from_velocity, velocity_from_noise),
        (score_from_velocity, velocity_from_score),
    ):
        assert_close(back(x, there(x, velocity, sigma), sigma), velocity)


@given(sigma=inside)
def test_the_score_is_the_gradient_of_the_log_density_of_gaussian_data(sigma):
    # x0 ~ N(0, 1/4): Var x = (1-σ)²/4 + σ², E[ε - x0 | x] = (σ - (1-σ)/4) / Var · x, ∇ log p(x) = -x / Var.
    variance = (1 - sigma) ** 2 / 4 + sigma**2
    x = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
    assert_close(score_from_velocity(x, (sigma - (1 - sigma) / 4) / variance * x, sigma), -x / variance)


def test_each_sample_is_converted_at_its_own_noise_level_in_float32():
    x, velocity = torch.tensor([[1.0], [1.0]]).bfloat16(), torch.tensor([[2.0], [2.0]]).bfloat16()
    sigma = torch.tensor([0.25, 0.5])
    assert_close(x0_from_velocity(x, velocity, sigma), torch.tensor([[0.5], [0.0]]))  # 1 - 2/4; 1 - 2/2
    assert_close(noise_from_velocity(x, velocity, sigma), torch.tensor([[2.5], [2.0]]))  # 1 + 2·3/4; 1 + 2/2
