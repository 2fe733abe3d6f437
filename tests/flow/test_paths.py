import torch
from torch.testing import assert_close

from thalweg.flow import LinearPath

PATH = LinearPath()


def test_corruption_runs_from_the_data_at_zero_to_the_noise_at_one():
    x0, noise = torch.tensor([[2.0]] * 3), torch.tensor([[-2.0]] * 3)
    got = PATH.corrupt(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert_close(got, torch.tensor([[2.0], [1.0], [-2.0]]))  # 0.75·2 - 0.25·2 = 1


def test_the_target_is_the_slope_of_the_path_in_sigma():
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    slope = (PATH.corrupt(x0, noise, 0.75) - PATH.corrupt(x0, noise, 0.25)) / 0.5
    assert_close(PATH.target(x0, noise), slope)


def test_the_noise_of_a_point_is_what_corrupts_the_data_into_it():
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.5, 1.0], dtype=torch.float64)
    assert_close(PATH.noise(x0, PATH.corrupt(x0, noise, sigma), sigma), noise)
    assert (
        PATH.noise(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.25).item() == -2.0
    )  # (1 - 0.75·2) / 0.25
    assert torch.equal(PATH.noise(x0, noise, 1.0), noise)


def test_the_surrogate_is_the_mean_squared_error_to_the_target():
    x0, noise = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    x = PATH.corrupt(x0, noise, sigma)
    off = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).reshape(1, 2, 2).repeat(3, 1, 1)
    off[2] = 0
    got = PATH.surrogate(PATH.target(x0, noise) + off, x0, x, sigma)
    assert_close(got, torch.tensor([7.5, 7.5, 0.0], dtype=torch.float64))  # (1 + 4 + 9 + 16) / 4


def test_bfloat16_data_is_corrupted_and_scored_in_float32():
    x0, noise = torch.full((1, 2), 0.3).bfloat16(), torch.full((1, 2), 2.7).bfloat16()
    x = PATH.corrupt(x0, noise, 0.01)
    assert_close(x, 0.99 * x0.float() + 0.01 * noise.float())
    surrogate = PATH.surrogate(PATH.target(x0, noise), x0, x, 0.01)
    assert_close(surrogate, torch.zeros(1), atol=1e-9, rtol=0)  # bfloat16 would leave rounding / 0.01
