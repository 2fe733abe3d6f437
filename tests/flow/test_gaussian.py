import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from thalweg.flow import CPS, FlowSDE, Transition

SIGMA = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
SIGMA_NEXT = torch.tensor([0.8, 0.4, 0.1], dtype=torch.float64)
K = torch.tensor([0.7, 0.35, 0.05], dtype=torch.float64)
STD = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)


def latents(seed: int) -> torch.Tensor:
    """3 samples of 2 x 4 numbers."""
    return torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(velocity: torch.Tensor, std: torch.Tensor = STD) -> Transition:
    return Transition(latents(0), velocity, SIGMA, SIGMA_NEXT, K, std)


def column(value: torch.Tensor) -> torch.Tensor:
    return value[:, None, None]


def test_the_mean_is_the_predicted_data_and_noise_put_together_for_the_next_level():
    x, velocity = latents(0), latents(1)
    x0 = x - column(SIGMA) * velocity
    noise = x + column(1 - SIGMA) * velocity
    assert_close(step(velocity).mean, column(1 - SIGMA_NEXT) * x0 + column(K) * noise)


def test_the_mean_moves_by_minus_J_for_each_unit_of_velocity():
    velocity = latents(1).requires_grad_()
    step(velocity).mean.sum().backward()
    by_hand = torch.tensor(
        [0.11, 0.22, 0.235], dtype=torch.float64
    )  # .2·.9-.7·.1; .6·.6-.35·.4; .9·.3-.05·.7
    assert_close(step(velocity).J, by_hand)
    assert velocity.grad is not None
    assert_close(velocity.grad, -column(by_hand).expand(3, 2, 4))


def test_a_sample_is_the_mean_plus_std_times_the_noise():
    policy = step(latents(1))
    assert_close(policy.sample(latents(2)) - policy.mean, column(STD) * latents(2))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_log_prob_is_that_of_the_normal_distribution(reduction):
    policy, x_next = step(latents(1)), latents(2)
    elements = Normal(policy.mean, column(STD).expand(3, 2, 4)).log_prob(x_next).flatten(1)
    assert_close(policy.log_prob(x_next, reduction), getattr(elements, reduction)(1))


def test_latent_axes_are_averaged_unless_the_sum_is_asked_for():
    policy, x_next = step(latents(1)), latents(2)
    assert_close(policy.log_prob(x_next), policy.log_prob(x_next, "sum") / 8)
    assert_close(policy.kl(step(latents(2))), policy.kl(step(latents(2)), "sum") / 8)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("other_std", [STD, 2 * STD, STD / 3])
def test_the_kl_is_that_of_normal_distributions(reduction, other_std):
    policy, other = step(latents(1)), step(latents(2), other_std)
    p, q = (Normal(each.mean, column(each.std).expand(3, 2, 4)) for each in (policy, other))
    assert_close(policy.kl(other, reduction), getattr(kl_divergence(p, q).flatten(1), reduction)(1))


def test_the_kl_of_two_policies_of_one_kernel_is_their_velocity_gap_seen_through_J():
    policy, other = step(latents(1)), step(latents(1) + 0.5)
    assert_close(policy.kl(other), (policy.J * 0.5) ** 2 / (2 * STD**2))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_first_gradient_of_the_policy_ratio_is_advantage_times_noise_times_J_over_std(sign):
    # log_prob = mean -(x' - mean)²/(2s²) and x' = mean + s z, so d(-A ratio)/dv = A J z / (s d), d = 8.
    advantage, noise = sign * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64), latents(2)
    velocity = latents(1).requires_grad_()
    policy = step(velocity)
    x_next = policy.sample(noise)
    ratio = (policy.log_prob(x_next) - policy.log_prob(x_next).detach()).exp()
    (-advantage * ratio).sum().backward()
    J = torch.tensor([0.11, 0.22, 0.235], dtype=torch.float64)
    assert velocity.grad is not None
    assert_close(velocity.grad, column(advantage * J / (STD * 8)) * noise, atol=1e-9, rtol=0)


def test_the_log_prob_of_flow_cps_is_the_squared_distance_and_needs_no_noise():
    velocity, noise = latents(1).requires_grad_(), latents(2)
    policy = step(velocity)
    score = policy.log_prob(policy.sample(noise), normalized=False)
    assert_close(score, -(STD**2) * noise.pow(2).flatten(1).mean(1))
    score.sum().backward()
    assert velocity.grad is not None
    assert_close(velocity.grad, -column(2 * STD * policy.J / 8) * noise)
    clean = CPS().transition(latents(0), latents(1), 0.25, 0.0)
    assert_close(clean.log_prob(clean.mean + 2, "sum", normalized=False), torch.full((3,), -32.0).double())


def test_a_transition_is_scored_again_from_its_stored_numbers_without_the_kernel():
    x, velocity = latents(0).float(), latents(1).float()
    rolled = FlowSDE().transition(x, velocity, SIGMA.float(), SIGMA_NEXT.float())
    x_next = rolled.sample(latents(2).float())
    again = Transition(x, velocity, rolled.sigma, rolled.sigma_next, rolled.k, rolled.std)
    assert torch.equal(again.log_prob(x_next), rolled.log_prob(x_next))


def test_bfloat16_latents_are_scored_in_float32():
    x, velocity, x_next = (latents(seed).bfloat16() for seed in (0, 1, 2))
    low = FlowSDE().transition(x, velocity, 0.5, 0.4)
    high = FlowSDE().transition(x.double(), velocity.double(), 0.5, 0.4)
    assert low.log_prob(x_next).dtype == torch.float32
    assert_close(low.log_prob(x_next).double(), high.log_prob(x_next.double()), atol=1e-5, rtol=1e-6)


def test_no_gradient_reaches_the_next_state():
    x_next = latents(2).requires_grad_()
    assert not step(latents(1)).log_prob(x_next).requires_grad


@pytest.mark.parametrize(
    ("sigma_next", "message"),
    [
        (0.0, "std=0 at sigma=0.25 -> 0: a log-probability needs falling sigmas and std > 0; "),
        (0.5, "std=nan at sigma=0.25 -> 0.5: a log-probability needs falling sigmas and std > 0; "),
    ],
)
def test_a_step_without_a_density_is_refused_in_one_line(sigma_next, message):
    kernel = CPS() if sigma_next == 0 else FlowSDE()
    policy = kernel.transition(latents(0), latents(1), 0.25, sigma_next)
    for ask in (policy.log_prob, lambda _: policy.kl(policy)):
        with pytest.raises(ValueError) as error:
            ask(latents(2))
        assert str(error.value) == message + (
            "take this step with a solver, or leave it out of the trained steps"
        )


def test_the_first_sample_without_a_density_is_named():
    sigma, sigma_next = torch.tensor([0.5, 0.5, 0.25, 0.125]), torch.tensor([0.25, 0.25, 0.0, 0.0])
    policy = CPS().transition(torch.zeros(4, 2), torch.zeros(4, 2), sigma, sigma_next)
    with pytest.raises(ValueError, match=r"std=0 at sigma=0\.25 -> 0: "):
        policy.require_density()
