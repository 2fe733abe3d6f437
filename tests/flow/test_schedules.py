import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.flow import Diffusers, DynamicShift, Schedule, Shifted, Uniform

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
