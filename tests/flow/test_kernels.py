from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.testing import assert_close

from thalweg.flow import (
    CPS,
    DDIM,
    DancePrecise,
    DanceSDE,
    DPMSolverSDE,
    Euler,
    FlowSDE,
    Kernel,
    LinearSDE,
    Precise,
    Shifted,
    StepSDE,
    Uniform,
)

ONE = torch.ones(1, 1, dtype=torch.float64)
LEVELS = ((0.9, 0.8), (0.5, 0.4), (0.1, 0.2))
STOCHASTIC = [
    FlowSDE(),
    DanceSDE(),
    LinearSDE(),
    StepSDE(levels=LEVELS),
    CPS(),
    Precise(),
    DancePrecise(),
    DPMSolverSDE(),
    DDIM(),
]
SDES = [kernel for kernel in STOCHASTIC if kernel != CPS()]
sigmas_inside = st.floats(0.05, 0.95)


def variance(sigma: float) -> float:
    """Of x at noise level σ, for 1-D data N(0, 1/4)."""
    return (1 - sigma) ** 2 / 4 + sigma**2


def exact_velocity(x: Tensor, sigma: float) -> Tensor:
    """E[ε - x0 | x] for the same data: linear in x."""
    return (sigma - (1 - sigma) / 4) / variance(sigma) * x


def affine(kernel, sigma: float, sigma_next: float) -> tuple[float, float]:
    """c and s of x' = c x + s z under the exact velocity."""
    step = kernel.transition(ONE, exact_velocity(ONE, sigma), sigma, sigma_next)
    return step.mean.item(), step.std.item()


def euler_factor(sigma: float, sigma_next: float) -> float:
    return Euler().step(ONE, exact_velocity(ONE, sigma), sigma, sigma_next, None)[0].item()


def output_std(kernel, schedule, num_steps: int) -> float:
    """Std of the samples, by propagating the variance; the last step is the ODE's."""
    sigmas, spread = schedule.sigmas(num_steps).tolist(), 1.0
    for sigma, sigma_next in pairwise(sigmas[:-1]):
        factor, std = affine(kernel, sigma, sigma_next)
        spread = factor**2 * spread + std**2
    return spread**0.5 * abs(euler_factor(sigmas[-2], 0.0))


@pytest.mark.parametrize(
    ("kernel", "uniform", "shifted"),
    # Closed form, N = 10, 20, 50, 1000 even steps, and 10 steps at shift 3; the data has std 0.5.
    [
        (FlowSDE(noise_level=0.0), [0.4308, 0.4642, 0.4854, 0.4993], 0.3697),
        (FlowSDE(noise_level=0.7), [0.4796, 0.4914, 0.4985, 0.5009], 0.4188),
        (DanceSDE(noise_level=0.3), [0.4400, 0.4694, 0.4876, 0.4994], 0.3774),
        (CPS(noise_level=0.7), [0.3702, 0.3941, 0.4104, 0.4245], 0.3276),
        (Precise(noise_level=0.7), [0.4188, 0.4564, 0.4816, 0.4990], 0.3585),
        (Precise(noise_level=1.5), [0.3819, 0.4294, 0.4673, 0.4981], None),
        (DPMSolverSDE(), [0.3865, 0.4329, 0.4693, 0.4982], None),
        (DDIM(), [0.3865, 0.4329, 0.4693, 0.4982], None),
    ],
)
def test_samples_of_gaussian_data_have_the_closed_form_spread(kernel, uniform, shifted):
    got = [output_std(kernel, Uniform(), num_steps) for num_steps in (10, 20, 50, 1000)]
    assert got == pytest.approx(uniform, abs=6e-5)
    if shifted is not None:
        assert output_std(kernel, Shifted(shift=3.0), 10) == pytest.approx(shifted, abs=6e-5)


def test_flow_sde_meets_the_credit_oracle_of_linear_rewards():
    # Reward x_N, one velocity bias theta_j a step: dE[r]/d theta_j = -J_j G_j, G_j the later factors.
    sigmas, kernel = Shifted(shift=3.0).sigmas(10).tolist(), FlowSDE(noise_level=0.7)
    pairs = list(pairwise(sigmas[:-1]))
    steps = [kernel.transition(ONE, exact_velocity(ONE, at), at, to) for at, to in pairs]
    last = euler_factor(sigmas[-2], 0.0)
    after, after_ode = [last], [last]
    for step, (at, to) in zip(reversed(steps[1:]), reversed(pairs[1:]), strict=True):
        after.insert(0, step.mean.item() * after[0])
        after_ode.insert(0, euler_factor(at, to) * after_ode[0])
    std = [step.std.item() for step in steps]
    sensitivity = [step.J.item() for step in steps]
    assert std == pytest.approx([0.700, 0.738, 0.532, 0.441, 0.388, 0.350, 0.320, 0.290, 0.256], abs=6e-4)
    expected = [0.036, 0.051, 0.060, 0.071, 0.085, 0.104, 0.130, 0.167, 0.222]
    assert sensitivity == pytest.approx(expected, abs=6e-4)
    assert after == pytest.approx([0.094, 0.142, 0.181, 0.223, 0.275, 0.346, 0.453, 0.631, 0.923], abs=6e-4)
    by_ode = [0.383, 0.400, 0.422, 0.450, 0.488, 0.541, 0.621, 0.746, 0.923]
    assert after_ode == pytest.approx(by_ode, abs=6e-4)


@pytest.mark.parametrize(
    ("kernel", "sigma", "sigma_next", "k", "std"),
    [
        # s² = a² σ/(1-σ) Δ and k = σ' - s²/(2σ); at σ = 1 the 1-σ is 1-σ'.
        (FlowSDE(noise_level=0.7), 1.0, 0.96, 0.715, 0.7),
        (FlowSDE(noise_level=0.7), 1 - 5e-7, 0.96, 0.7150031, 0.6999954),
        (FlowSDE(noise_level=0.7), 0.8, 0.76, 0.711, 0.28),
        (FlowSDE(noise_level=0.7), 0.2, 0.0, -0.06125, 0.1565248),
        (FlowSDE(noise_level=0.7, sigma_max=0.99), 1.0, 0.96, -0.02, 1.4),
        (FlowSDE(noise_level=0.7, sigma_max=0.99), 0.8, 0.76, 0.711, 0.28),
        # s² = η² Δ.
        (DanceSDE(noise_level=0.3), 1.0, 0.9, 0.8955, 0.0948683),
        (DanceSDE(noise_level=0.3), 0.5, 0.4, 0.391, 0.0948683),
        (DanceSDE(noise_level=0.3), 0.1, 0.0, -0.045, 0.0948683),
        # g is 0.1, 0.3 and 0.5 at σ = 0, 0.5 and 1.
        (LinearSDE(noise_min=0.1, noise_max=0.5), 1.0, 0.9, 0.8875, 0.1581139),
        (LinearSDE(noise_min=0.1, noise_max=0.5), 0.5, 0.4, 0.391, 0.0948683),
        (LinearSDE(noise_max=1.0), 0.25, 0.0, -0.03125, 0.125),
        # g is 0.8 above 0.9, half way from 0.8 to 0.4 at 0.7, and 0.2 below 0.1.
        (StepSDE(levels=LEVELS), 1.0, 0.9, 0.868, 0.2529822),
        (StepSDE(levels=LEVELS), 0.7, 0.6, 0.5742857, 0.1897367),
        (StepSDE(levels=LEVELS), 0.05, 0.0, -0.02, 0.0447214),
        (StepSDE(levels=((0.5, 0.3),)), 1.0, 0.9, 0.8955, 0.0948683),
        # cos and sin of 30 degrees.
        (CPS(noise_level=1 / 3), 1.0, 0.8, 0.6928203, 0.4),
        (CPS(noise_level=1 / 3), 0.6, 0.4, 0.3464102, 0.2),
        (CPS(noise_level=1 / 3), 0.25, 0.0, 0.0, 0.0),
        # σ'(1-σ) / (σ(1-σ')) = 1/4, so ρ = 1/2 for a = 1 and 1/4 for a² = 2.
        (Precise(noise_level=1.0), 1.0, 0.5, 0.0, 0.5),
        (Precise(noise_level=1.0), 0.8, 0.5, 0.25, 0.4330127),
        (Precise(noise_level=1.0), 0.25, 0.0, 0.0, 0.0),
        # Above 0.8 the integral of g²/u² is log(σ/σ') / 0.2, so ρ = 0.8^2.5 down to there, then another 1/2.
        (Precise(noise_level=1.0, sigma_max=0.8), 1.0, 0.8, 0.4579467, 0.6559610),
        (Precise(noise_level=1.0, sigma_max=0.8), 1.0, 0.5, 0.1431084, 0.4790825),
        (Precise(noise_level=1.0, sigma_max=0.8), 0.25, 0.0, 0.0, 0.0),
        # 1/σ' - 1/σ is 1 and 2, so ρ = e^-½ and e^-1 for η = 1.
        (DancePrecise(noise_level=1.0), 1.0, 0.5, 0.3032653, 0.3975300),
        (DancePrecise(noise_level=1.0), 0.5, 0.25, 0.0919699, 0.2324665),
        (DancePrecise(noise_level=1.0), 0.25, 0.0, 0.0, 0.0),
        # σ'(1-σ) / (σ(1-σ')) is 0 and 1/4, so r is 1 and 15/16, a share 0.36 of it for η = 0.6.
        (DDIM(noise_level=0.6), 1.0, 0.5, 0.4, 0.3),
        (DDIM(noise_level=0.6), 0.8, 0.5, 0.4069705, 0.2904738),
        (DDIM(noise_level=1.0), 0.8, 0.5, 0.125, 0.4841229),
        (DDIM(noise_level=0.6), 0.25, 0.0, 0.0, 0.0),
        (DPMSolverSDE(), 1.0, 0.5, 0.0, 0.5),
        (DPMSolverSDE(), 0.8, 0.5, 0.125, 0.4841229),
        (DPMSolverSDE(), 0.25, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_a_middle_and_the_last_step_have_the_numbers_worked_out_by_hand(
    kernel, sigma, sigma_next, k, std, dtype
):
    step = kernel.transition(ONE.to(dtype), ONE.to(dtype), sigma, sigma_next)
    assert_close(step.k, torch.tensor([k], dtype=dtype), atol=2e-6, rtol=0)
    assert_close(step.std, torch.tensor([std], dtype=dtype), atol=2e-6, rtol=0)


@given(sigma=sigmas_inside, kernel=st.sampled_from(SDES))
def test_a_small_step_of_an_sde_keeps_the_marginal_variance_of_gaussian_data(sigma, kernel):
    def error(delta: float) -> float:
        factor, std = affine(kernel, sigma, sigma - delta)
        return abs(factor**2 * variance(sigma) + std**2 - variance(sigma - delta))

    # O(Δ²), up to 2/(1-σ)² of it near noise; a wrong sign in the drift is O(Δ).
    assert error(1e-4) < 1e-4**2 * 20 / (sigma * (1 - sigma)) ** 2


@pytest.mark.parametrize(
    "kernel",
    [
        CPS(),
        CPS(noise_level=0.3),
        Precise(),
        Precise(sigma_max=0.7),
        DancePrecise(),
        DPMSolverSDE(),
        DDIM(),
        DDIM(noise_level=0.4),
    ],
)
@given(sigma=st.floats(0.01, 1.0), share=st.floats(0.0, 0.99))
def test_kernels_without_excess_leave_exactly_the_noise_of_the_next_level(kernel, sigma, share):
    step = kernel.transition(ONE, ONE, sigma, share * sigma)
    assert_close(step.k**2 + step.std**2, (share * step.sigma) ** 2, atol=1e-12, rtol=0)


@given(sigma=sigmas_inside, share=st.floats(0.0, 0.99))
def test_euler_maruyama_leaves_more_noise_by_the_known_excess(sigma, share):
    sigma_next = share * sigma
    delta = sigma - sigma_next
    for kernel, g2 in (
        (FlowSDE(noise_level=0.7), 0.49 * sigma / (1 - sigma)),
        (DanceSDE(), 0.09),
        (LinearSDE(noise_max=0.5), 0.25 * sigma**2),
        (StepSDE(levels=((1.0, 0.5), (0.0, 0.0))), 0.25 * sigma**2),
    ):
        step = kernel.transition(ONE, ONE, sigma, sigma_next)
        excess = g2 * delta**2 / sigma + (g2 * delta / (2 * sigma)) ** 2
        assert_close(step.k**2 + step.std**2, step.sigma_next**2 + excess)


@pytest.mark.parametrize(
    ("kernel", "direct", "in_two"),
    [
        (Precise(noise_level=0.7), (0.3560, 0.1233), (0.3560, 0.1233)),
        # ρ = e^(-0.245 (1/0.5 - 1/0.8)) = e^-0.18375, and its square is 0.69247.
        (DancePrecise(noise_level=0.7), (0.41607, 0.07688), (0.41607, 0.07688)),
        (CPS(noise_level=0.7), (0.2270, 0.1985), (0.1031, 0.2394)),
        (FlowSDE(noise_level=0.7), (0.1325, 0.5880), (0.2833, 0.2451)),
    ],
)
def test_two_steps_with_one_x0_are_one_long_step_for_exact_integrals_only(kernel, direct, in_two):
    # x0 = 0, so the velocity is x/σ and x is all noise: x = σ ε.
    def noise_and_variance(*sigmas: float) -> tuple[float, float]:
        x, spread = sigmas[0] * ONE, 0.0
        for at, to in pairwise(sigmas):
            step = kernel.transition(x, x / at, at, to)
            spread = spread * (step.mean / x).item() ** 2 + step.std.item() ** 2
            x = step.mean
        return x.item(), spread

    assert noise_and_variance(0.8, 0.5) == pytest.approx(direct, abs=6e-5)
    assert noise_and_variance(0.8, 0.65, 0.5) == pytest.approx(in_two, abs=6e-5)


def test_a_bound_inside_the_step_does_not_break_the_composition_of_precise():
    def log_rho(sigma: float, sigma_next: float) -> float:
        step = Precise(noise_level=0.7, sigma_max=0.8).transition(ONE, ONE, sigma, sigma_next)
        return (step.k / step.sigma_next).log().item()

    assert log_rho(1.0, 0.5) == pytest.approx(log_rho(1.0, 0.9) + log_rho(0.9, 0.7) + log_rho(0.7, 0.5))


@pytest.mark.parametrize(
    "kernel",
    [
        FlowSDE(noise_level=0.0),
        FlowSDE(noise_level=0.0, sigma_max=0.9),
        DanceSDE(noise_level=0.0),
        CPS(noise_level=0.0),
        Precise(noise_level=0.0),
        Precise(noise_level=0.0, sigma_max=0.9),
        LinearSDE(noise_max=0.0),
        StepSDE(levels=((0.5, 0.0),)),
        DancePrecise(noise_level=0.0),
        DDIM(noise_level=0.0),
    ],
)
@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.9), (0.95, 0.85), (0.5, 0.3), (0.2, 0.0)])
def test_without_noise_every_kernel_is_the_euler_step(kernel, sigma, sigma_next):
    x, velocity = torch.randn(2, 3, 4, dtype=torch.float64)
    step = kernel.transition(x, velocity, sigma, sigma_next)
    assert_close(step.sample(torch.ones_like(x)), x + (sigma_next - sigma) * velocity)


@given(sigma=st.floats(0.01, 1.0), share=st.floats(0.0, 0.99))
def test_the_ddpm_posterior_is_precise_at_noise_level_root_two_and_ddim_at_one(sigma, share):
    dpm = DPMSolverSDE().transition(ONE, ONE, sigma, share * sigma)
    for other in (Precise(noise_level=2**0.5), DDIM(noise_level=1.0)):
        same = other.transition(ONE, ONE, sigma, share * sigma)
        assert_close((dpm.k, dpm.std), (same.k, same.std), atol=1e-9, rtol=1e-6)


def test_the_linear_sde_has_the_published_step_weights_of_wan():
    # std/J of the first ten of 20 steps at shift 3, as Flash-GRPO stores them.
    sigmas = Shifted(shift=3.0).sigmas(20).double()
    x = ONE.expand(20, 1)
    for kernel in (LinearSDE(), LinearSDE(noise_max=sigmas[1].item())):
        step = kernel.transition(x, x, sigmas[:-1], sigmas[1:])
        published = [7.477, 7.041, 6.611, 6.187, 5.768, 5.356, 4.950, 4.551, 4.160, 3.775]
        assert (step.std / step.J)[:10].tolist() == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kernel", "doubled"),
    [
        (FlowSDE(noise_level=0.3), FlowSDE(noise_level=0.6)),
        (FlowSDE(noise_level=0.3, sigma_max=0.9), FlowSDE(noise_level=0.6, sigma_max=0.9)),
        (DanceSDE(noise_level=0.3), DanceSDE(noise_level=0.6)),
        (LinearSDE(noise_min=0.1, noise_max=0.4), LinearSDE(noise_min=0.2, noise_max=0.8)),
        (StepSDE(levels=LEVELS), StepSDE(levels=tuple((sigma, 2 * g) for sigma, g in LEVELS))),
        (CPS(noise_level=0.3), CPS(noise_level=0.6)),
        (CPS(noise_level=0.8), CPS(noise_level=1.0)),  # no more than all the noise
        (Precise(noise_level=0.3), Precise(noise_level=0.6)),
        (Precise(noise_level=0.3, sigma_max=0.9), Precise(noise_level=0.6, sigma_max=0.9)),
        (DancePrecise(noise_level=0.3), DancePrecise(noise_level=0.6)),
        (DPMSolverSDE(), Precise(noise_level=2 * 2**0.5)),
        (DDIM(noise_level=0.3), DDIM(noise_level=0.6)),
        (DDIM(noise_level=0.8), DDIM(noise_level=1.0)),
    ],
)
def test_a_noise_factor_multiplies_the_noise_level_of_its_sample(kernel, doubled, dtype):
    sigma = torch.tensor([1.0, 0.95, 0.6, 0.6, 0.25], dtype=dtype)
    sigma_next = torch.tensor([0.9, 0.8, 0.4, 0.4, 0.0], dtype=dtype)
    x, velocity = torch.randn(2, 5, 3, dtype=dtype)
    plain, twice = (k.transition(x, velocity, sigma, sigma_next) for k in (kernel, doubled))
    all_twice = kernel.transition(x, velocity, sigma, sigma_next, 2.0)
    assert_close((all_twice.k, all_twice.std), (twice.k, twice.std))
    mixed = kernel.transition(x, velocity, sigma, sigma_next, torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0]))
    for row, same in enumerate((twice, plain, twice, plain)):
        assert_close((mixed.k[row], mixed.std[row]), (same.k[row], same.std[row]))
    ode = Euler().step(x, velocity, sigma, sigma_next, None)[0]
    assert_close(mixed.sample(torch.ones_like(x))[4], ode[4])


@pytest.mark.parametrize("kernel", STOCHASTIC)
@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.9), (0.6, 0.4), (0.2, 0.1)])
def test_the_first_gradient_of_the_policy_ratio_is_A_J_z_over_std_for_every_kernel(kernel, sigma, sigma_next):
    x, velocity, noise = torch.randn(3, 2, 4, dtype=torch.float64)
    velocity.requires_grad_()
    step = kernel.transition(x, velocity, sigma, sigma_next, 0.7)
    log_prob = step.log_prob(step.sample(noise))
    advantage = torch.tensor([1.5, -0.5], dtype=torch.float64)
    (-advantage * (log_prob - log_prob.detach()).exp()).sum().backward()
    assert velocity.grad is not None
    by_hand = (advantage * step.J / (step.std * 4))[:, None] * noise
    assert_close(velocity.grad, by_hand, atol=1e-9, rtol=0)


def test_a_noise_table_whose_levels_do_not_fall_is_refused():
    for levels in ([], [(0.1, 0.2), (0.5, 0.4)], [(0.5, 0.2), (0.5, 0.4)], [(0.5, -0.2)], [(1.1, 0.2)]):
        with pytest.raises(ValidationError):
            StepSDE(levels=levels)
    with pytest.raises(ValidationError, match=r"0\.1 is followed by 0\.5: the noise levels must fall"):
        StepSDE(levels=[(0.1, 0.2), (0.5, 0.4)])


@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_each_sample_steps_at_its_own_noise_level(kernel):
    x, velocity = torch.randn(2, 3, 4)
    sigma, sigma_next = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.9, 0.4, 0.0])
    together = kernel.transition(x, velocity, sigma, sigma_next)
    for i in range(3):
        alone = kernel.transition(x[i : i + 1], velocity[i : i + 1], sigma[i].item(), sigma_next[i])
        assert_close(together.mean[i : i + 1], alone.mean)
        assert_close(together.std[i : i + 1], alone.std)


@pytest.mark.parametrize("kernel", STOCHASTIC)
def test_levels_a_rounding_away_from_one_and_zero_stay_finite_in_float32(kernel):
    below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    levels, x = torch.linspace(0.01, 0.99, 4000), torch.ones(4000, 1)
    for sigma, sigma_next in ((below_one, levels), (levels, 1e-30), (levels, 0.0)):
        step = kernel.transition(x, x, sigma, sigma_next)
        assert step.mean.isfinite().all()
        assert step.std.isfinite().all()


def test_a_recipe_names_a_kernel_by_its_kind():
    read = TypeAdapter(Kernel).validate_python
    for kernel in STOCHASTIC:
        assert read(kernel.model_dump(mode="json")) == kernel
    assert read({"kind": "step_sde", "levels": [[0.9, 0.8], [0.5, 0.4], [0.1, 0.2]]}) == STOCHASTIC[3]
    for wrong in (
        {"kind": "flow_sde", "noise_level": -0.1},
        {"kind": "cps", "noise_level": 1.1},
        {"kind": "precise", "sigma_max": 1.0},
        {"kind": "dpm_sde", "noise_level": 1.0},
        {"kind": "ddim", "noise_level": 1.1},
        {"kind": "step_sde"},
        {"kind": "sde"},
    ):
        with pytest.raises(ValidationError):
            read(wrong)
