"""Networks that predict noise, read as a flow: against closed forms, and against DDIM itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from models.diffusers.builders import ddim
from models.diffusers.stock import PROMPTS
from thalweg.flow import DDIM, VariancePreserving
from thalweg.models.diffusers.readings import DiscreteReading, discrete
from thalweg.rollout import Deterministic, Rollout, Root, grow

TABLE = ddim().alphas_cumprod
TOP = float(discrete(TABLE, "epsilon").levels[-1])


def best_prediction(kind: str, x_vp: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """What the best network returns where the data are N(0, 1): x̄ is N(0, 1) too, and E[x0|x̄] = √ᾱ x̄."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    # v̄ = √ᾱ ε - √(1-ᾱ) x0, whose expectation cancels.
    return {"epsilon": noise * x_vp, "sample": signal * x_vp, "v_prediction": 0 * x_vp}[kind]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@given(timestep=st.integers(0, 999))
def test_the_best_network_of_normal_data_has_the_velocity_of_normal_data(kind, timestep):
    reading, x = discrete(TABLE, kind), torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    sigma = reading.levels[timestep][None]
    output = best_prediction(kind, reading.fed(x, sigma), TABLE[timestep].double())
    # E[ε - x0 | x] = (2σ-1) / ((1-σ)² + σ²) x
    expected = (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2) * x
    assert_close(reading.velocity(output, x, sigma), expected, atol=1e-6, rtol=1e-6)


@given(timestep=st.integers(0, 999))
def test_a_level_of_the_table_is_told_to_the_network_as_its_whole_timestep(timestep):
    reading = discrete(TABLE, "epsilon")
    assert float(reading.timestep(reading.levels[[timestep]].float())) == timestep


def test_between_two_timesteps_and_beyond_the_ends_of_the_table():
    reading = DiscreteReading(torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64), "epsilon")
    asked = torch.tensor([0.0, 0.3, 0.7, 0.9, 1.0])
    assert_close(reading.timestep(asked), torch.tensor([0.0, 0.5, 1.75, 2.0, 2.0]))


def test_pure_noise_is_taken_for_the_noisiest_state_that_the_network_knows():
    reading, x = discrete(TABLE, "epsilon"), torch.randn(2, 3)
    at_one = reading.velocity(0.5 * x, x, torch.ones(2))
    signal, noise = TABLE[-1].sqrt(), (1 - TABLE[-1]).sqrt()
    # ε̂ = x̄/2 and x̂0 = (x̄ - √(1-ᾱ) ε̂) / √ᾱ of timestep 999
    assert_close(at_one, 0.5 * x - (x - noise * 0.5 * x) / signal, rtol=1e-4, atol=1e-4)
    level = torch.full((2,), TOP)
    at_top = reading.velocity(0.5 * x, x * (TOP**2 + (1 - TOP) ** 2) ** 0.5, level)
    assert_close(at_one, at_top, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_rollout_without_noise_is_a_ddim_trajectory_of_the_stock_pipeline(name, tiny_policy_of, stock_run):
    run = stock_run(name)
    rollout = Rollout(plan=Deterministic(), group_size=1, steps=4, schedule=VariancePreserving())
    assert_close(rollout.sigmas(), run.sigmas, atol=1e-6, rtol=0)
    roots = [Root(prompt_slot=slot, seed_group=0, number=slot, condition=slot) for slot in range(2)]
    forest = grow(run.policy, PROMPTS, roots, rollout, seed=3, iteration=0, keep_states=True)
    start = forest.levels[0].latents
    norm = (run.sigmas[0] ** 2 + (1 - run.sigmas[0]) ** 2).sqrt()  # 0.83
    assert 0.95 * norm < start.std() < 1.05 * norm

    pipeline = run.policy.pipeline
    seam, scheduler = pipeline.scheduler, ddim()
    pipeline.scheduler = scheduler
    try:
        made = pipeline(
            prompt=[prompt.text for prompt in PROMPTS],
            latents=start / norm,
            num_inference_steps=4,
            eta=0.0,
            output_type="latent",
            **run.policy.arguments,
        )
    finally:
        pipeline.scheduler = seam
    assert_close(forest.latents, made.images, atol=5e-5, rtol=1e-5)


def test_a_drawn_step_is_ddims_own_with_noise(tiny_policy_of):
    policy, scheduler = tiny_policy_of("sd15", guidance_scale=1.0), ddim()
    scheduler.set_timesteps(4)
    x_vp, draw = torch.randn(2, 2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = policy.encode(PROMPTS)
    sigma, sigma_next = VariancePreserving().sigmas(4)[:2]
    norm, norm_next = (((1 - s) ** 2 + s**2).sqrt() for s in (sigma, sigma_next))
    with torch.no_grad():
        x = norm * x_vp
        step = DDIM().transition(x, policy.velocity(x, sigma.expand(2), condition), sigma, sigma_next)
        embedded = policy.pipeline.encode_prompt([p.text for p in PROMPTS], "cpu", 1, False)[0]
        output = policy.pipeline.unet(x_vp, 751, embedded).sample
        stock = scheduler.step(output, 751, x_vp, eta=1.0, variance_noise=draw).prev_sample
    assert_close(step.sample(draw), norm_next * stock, atol=2e-5, rtol=1e-5)
