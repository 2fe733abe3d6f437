import pytest
import torch
from torch.testing import assert_close

from thalweg.core.values import Prompt
from thalweg.credit import GroupCredit
from thalweg.flow import DanceSDE
from thalweg.objectives import ClippedRatio
from thalweg.rollout import AllSteps, Guidance, Rollout, Root, grow
from thalweg.training.backward import backward

HOST = Rollout(plan=AllSteps(), group_size=4, steps=6, kernel=DanceSDE(noise_level=0.4))
ROOTS = [Root(0, group, group, 0) for group in range(4)]
ASKED = [Prompt("")] * 4


def total(x, sigma, prompts):
    """r = the sum of the latents, whose gradient is 1."""
    assert len(x) == len(sigma) == len(prompts)
    return x.flatten(1).sum(1)


def grown(policy, **guidance):
    rollout = HOST.model_copy(update={"guidance": Guidance(reward="r", **guidance) if guidance else None})
    return grow(policy, [Prompt("")], ROOTS, rollout, seed=0, iteration=0, value=total)


@pytest.mark.parametrize("steps", [None, (2, 4), (9,)])
def test_a_guided_chain_ends_as_far_off_as_its_shifts_are_carried(steps, linear_policy):
    # Same noise, affine steps: the gap is the sum of k_g D_j times the later factors c_m.
    policy = linear_policy((3,))
    gap = grown(policy, strength=0.3, steps=steps).latents - grown(policy).latents
    sigmas, expected = HOST.sigmas().double(), 0.0
    for step in range(6):
        sigma, sigma_next = sigmas[step].item(), sigmas[step + 1].item()
        delta = sigma - sigma_next
        slope = (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)
        g2 = 0.16 if step < 5 else 0.0
        factor = 1 - g2 * delta / (2 * sigma) - slope * delta * (1 + g2 * (1 - sigma) / (2 * sigma))
        guided = step < 5 and (steps is None or step in steps)
        expected = factor * expected + 0.3 * delta * guided
    assert_close(gap, torch.full_like(gap, expected), atol=1e-5, rtol=1e-4)
    assert (expected > 0.05) == (steps != (9,))


def test_the_log_prob_of_a_guided_step_is_that_of_the_unguided_one(linear_policy):
    policy, objective = linear_policy((3,)), ClippedRatio()
    forest = grown(policy, strength=0.5)
    advantages = forest.advantages(
        GroupCredit().advantages({"r": torch.arange(4.0)}, {"r": 1.0}, forest.leaves)
    )
    rows = objective.experience(forest, advantages, seed=0, iteration=0)
    assert backward(objective, policy, rows, forest.condition, 8, 1.0).ratio_deviation == 0
    sigma_next = rows.sigma_next[0].item()
    v = rows.x[:4]  # the exact flow at sigma = 1
    mean = (1 - sigma_next) * (rows.x[:4] - v) + rows.k[0] * rows.x[:4]
    expected = torch.distributions.Normal(mean, rows.std[0]).log_prob(rows.x_next[:4]).mean(1)
    assert_close(rows.old_log_prob[:4], expected, atol=1e-5, rtol=1e-4)


def bent(x, sigma, prompts):
    return (x**2).flatten(1).sum(1) / 2 + x.flatten(1)[:, 0]


def test_two_values_along_random_directions_average_to_the_gradient():
    x = torch.tensor([0.5, -1.0, 2.0]).expand(40_000, 3)
    directions = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0))
    asked = [Prompt("")] * 40_000
    how = {"strength": 2.0, "probe_size": 0.1}
    shift = Guidance(reward="r", gradient="spsa", **how).shift(bent, x, 0.8, 0.5, asked, directions)
    exact = Guidance(reward="r", **how).shift(bent, x[:1], 0.8, 0.5, asked[:1], directions[:1])
    assert_close(exact, 2 * 0.3 * torch.tensor([[1.5, -1.0, 2.0]]))  # gradient x, and 1 in the first
    # |gradient| 2.7 times .6: standard error .01.
    assert_close(shift.mean(0), exact[0], atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        ({}, [0.3, 0.4]),  # 1 · .1 · (3, 4)
        ({"scale_by_step": False}, [3.0, 4.0]),
        ({"normalize": True}, [0.3 / 12.5**0.5, 0.4 / 12.5**0.5]),  # root mean square of (3, 4)
        ({"max_shift": 0.1}, [0.03 / 0.125**0.5, 0.04 / 0.125**0.5]),
        ({"max_shift": 1.0}, [0.3, 0.4]),
    ],
)
def test_shifts_are_scaled_and_held(options, shift):
    def plane(x, sigma, prompts):
        return 3 * x[:, 0] + 4 * x[:, 1]

    guidance = Guidance(reward="r", strength=1.0, **options)
    found = guidance.shift(plane, torch.zeros(2, 2), 0.6, 0.5, ASKED[:2], torch.zeros(2, 2))
    assert_close(found, torch.tensor([shift, shift]))
