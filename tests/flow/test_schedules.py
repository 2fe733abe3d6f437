import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.flow import (
    Diffusers,
    DynamicShift,
    Schedule,
    Shifted,
    Uniform,
    VariancePreserving,
    alpha_bar_from_sigma,
)

EVERY = [Uniform(), Shifted(), Shifted(shift=0.5), DynamicShift(num_tokens=1024), Diffusers()]


@pytest.mark.parametrize(
    ("schedule", "sigmas"),
    [
        (Uniform(), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
        # 3u / (1 + 2u): 27/28, 12/13, 7/8, 9/11, 3/4, 2/3, 9/16, 3/7, 1/4.
        (Shifted(shift=3.0), [1, 0.9643, 0.9231, 0.875, 0.8182, 0.75, 0.6667, 0.5625, 0.4286, 0.25, 0]),
        # diffusers, FlowMatchEulerDiscreteScheduler(shift=3.0).set_timesteps(10).sigmas
        (
            Diffusers(shift=3.0),
            [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0],
        ),
    ],
)
def test_ten_steps_visit_the_published_noise_levels(schedule, sigmas):
    assert_close(schedule.sigmas(10), torch.tensor(sigmas, dtype=torch.float32), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("num_tokens", "sigmas"),
    # S = e^mu: S/(S + 1/u - 1) at u = 3/4, 1/2, 1/4; the middle one is the logistic function of mu.
    [
        (256, [1, 0.831824, 0.622459, 0.354661, 0]),  # mu = 0.5
        (4096, [1, 0.904531, 0.759511, 0.512844, 0]),  # mu = 1.15
        (2176, [1, 0.872541, 0.695297, 0.432020, 0]),  # halfway, mu = 0.825
    ],
)
def test_the_dynamic_shift_grows_with_the_number_of_tokens_as_in_flux(num_tokens, sigmas):
    got = DynamicShift(num_tokens=num_tokens).sigmas(4)
    assert_close(got, torch.tensor(sigmas, dtype=torch.float32), atol=2e-6, rtol=0)


@pytest.mark.parametrize("schedule", EVERY)
@given(num_steps=st.integers(1, 200))
def test_every_schedule_falls_from_exactly_one_to_exactly_zero(schedule, num_steps):
    sigmas = schedule.sigmas(num_steps)
    assert sigmas.dtype == torch.float32
    assert (sigmas[0].item(), sigmas[-1].item()) == (1.0, 0.0)
    assert (sigmas.diff() < 0).all()
    assert len(sigmas) == num_steps + 1


@pytest.mark.parametrize("schedule", EVERY)
def test_a_schedule_without_steps_is_refused_in_one_line(schedule):
    message = "num_steps=0: a schedule needs at least one step; set num_steps to 1 or more"
    with pytest.raises(ValueError) as error:
        schedule.sigmas(0)
    assert str(error.value) == message


def test_a_recipe_names_a_schedule_by_its_kind():
    read = TypeAdapter(Schedule).validate_python
    assert [read(schedule.model_dump()) for schedule in EVERY] == EVERY
    for wrong in ({"kind": "shifted", "shift": 0.0}, {"kind": "dynamic_shift"}, {"kind": "shift"}):
        with pytest.raises(ValidationError):
            read(wrong)


@pytest.mark.parametrize(
    ("settings", "steps", "timesteps"),
    [
        # diffusers, DDIMScheduler(steps_offset=1).set_timesteps(N).timesteps
        ({}, 4, [751, 501, 251, 1]),
        ({}, 3, [667, 334, 1]),
        ({"spacing": "trailing"}, 4, [999, 749, 499, 249]),
        ({"spacing": "linspace"}, 4, [999, 666, 333, 0]),
    ],
)
def test_a_variance_preserving_schedule_visits_ddims_timesteps_and_then_the_data(settings, steps, timesteps):
    sigmas = VariancePreserving(**settings).sigmas(steps)
    assert sigmas[-1] == 0
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0)[timesteps]
    # √(1-ᾱ) / √ᾱ is σ / (1-σ).
    assert_close(
        (sigmas / (1 - sigmas))[:-1].double(), ((1 - alpha_bar) / alpha_bar).sqrt(), rtol=1e-4, atol=0
    )


def test_stable_diffusion_ends_at_the_signal_that_is_known_of_it():
    # ᾱ of timestep 999 is 0.0047 (Lin et al. 2023, arXiv:2305.08891, Sec. 3.1: 0.068265 of the signal).
    top = VariancePreserving(spacing="trailing").sigmas(10)[0]
    assert_close(alpha_bar_from_sigma(top).sqrt(), torch.tensor(0.068265), rtol=1e-4, atol=0)
    linear = VariancePreserving(betas="linear", beta_start=0.1, beta_end=0.1, num_train_timesteps=2)
    # ᾱ = 0.9, 0.81
    assert_close(
        alpha_bar_from_sigma(linear.warp(torch.tensor([0, 0.5, 1.0]).double())),
        torch.tensor([1, 0.9, 0.81]).double(),
        atol=1e-6,
        rtol=0,
    )


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(
        ValueError, match="num_steps=1001: a schedule of 1000 timesteps takes 1 to 1000 steps"
    ):
        VariancePreserving().sigmas(1001)
