from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.values import Samples
from thalweg.objectives import Forward
from thalweg.objectives.advantage_map import AdvantageMap
from thalweg.objectives.forward import Pull
from thalweg.objectives.rules import Implicit, Weighted
from thalweg.objectives.surrogate import Regression
from thalweg.training.backward import backward

GENERATOR = torch.Generator().manual_seed(0)
X0, NOISE, V_OLD, V_REF, STEP = torch.randn(5, 6, 3, 2, dtype=torch.float64, generator=GENERATOR)
SIGMA = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
ADVANTAGES = torch.tensor([-7.0, -2.0, 0.0, 0.5, 3.0, 9.0], dtype=torch.float64)
CLIPPED = torch.tensor([-5.0, -2.0, 0.0, 0.5, 3.0, 5.0], dtype=torch.float64)
COLUMN = torch.arange(6)
ROWS = Samples(
    x0=X0,
    sigma=SIGMA,
    noise=NOISE,
    advantages=ADVANTAGES[:, None],
    weight=torch.ones(6, dtype=torch.float64),
    condition=torch.zeros(6, dtype=torch.int64),
    prompt_slot=COLUMN,
    seed_group=COLUMN,
    sample=COLUMN,
    step=COLUMN,
)
AT = SIGMA.view(-1, 1, 1)


def nft(beta: float = 1.0, advantage_max: float = 5.0, kl_weight: float = 0.0, old: str = "old") -> Forward:
    """DiffusionNFT as the authors run it."""
    rule = Implicit(beta=beta, advantage_max=advantage_max, old=old)
    return Forward(rule=rule, pulls=(Pull(to="reference", weight=kl_weight),))


def mean(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(1)


def adaptive(velocity: torch.Tensor) -> torch.Tensor:
    """The self-normalised regression error l_a of a velocity, its divisor without gradient."""
    error = (1 - AT) * X0 + AT * NOISE - AT * velocity - X0
    return mean(error**2) / mean(error.detach().abs()).clamp(min=1e-5)


def loss_of(objective: Forward, velocity: torch.Tensor, rows: Samples = ROWS):
    x, _ = objective.inputs(rows)
    anchors = {"old": V_OLD, "reference": V_REF}
    return objective.loss(objective.measure(rows, x, velocity, anchors), rows)


def gradient_of(objective: Forward, velocity: torch.Tensor, rows: Samples = ROWS) -> torch.Tensor:
    velocity = velocity.clone().requires_grad_()
    loss_of(objective, velocity, rows)[0].sum().backward()
    return velocity.grad


def test_the_network_sees_data_mixed_with_noise():
    x, sigma = nft().inputs(ROWS)
    assert_close(x, (1 - AT) * X0 + AT * NOISE)
    assert_close(sigma, SIGMA)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_loss_is_the_published_one(beta):
    velocity = V_OLD + 0.3 * STEP
    plus = beta * velocity + (1 - beta) * V_OLD
    minus = (1 + beta) * V_OLD - beta * velocity
    r = CLIPPED / 10 + 0.5
    expected = 5 / beta * (r * adaptive(plus) + (1 - r) * adaptive(minus)) + 0.01 * mean(
        (velocity - V_REF) ** 2
    )
    terms, report = loss_of(nft(beta=beta, kl_weight=0.01), velocity)
    assert_close(terms, expected)
    assert_close(report["distance/old"], 0.09 * mean(STEP**2))
    assert_close(report["distance/reference"], mean((velocity - V_REF) ** 2))


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_with_uniform_weights_it_is_regression_with_a_trust_region(beta):
    # (1/β) [r |v+ - v|² + (1-r) |v- - v|²] = A |vθ - v|² + (β-A) |vθ - v_old|² + (1/β-A) |v_old - v|²
    velocity, target = V_OLD + 0.3 * STEP, NOISE - X0
    uniform = Regression(weighting="uniform")
    terms, _ = loss_of(nft(beta=beta).model_copy(update={"surrogate": uniform}), velocity)
    # The same from parts: the advantage as the weight of the error, and of a pull that grows as it falls.
    pull = Pull(to="old", weight=beta, advantage_weight=-1)
    regression = Forward(
        surrogate=uniform, advantage=AdvantageMap(limit=5, scale=0.2), rule=Weighted(), pulls=(pull,)
    )
    A = CLIPPED / 5
    expected, _ = loss_of(regression, velocity)
    assert_close(expected, A * mean((velocity - target) ** 2) + (beta - A) * mean((velocity - V_OLD) ** 2))
    assert_close(terms / 5, expected + (1 / beta - A) * mean((V_OLD - target) ** 2))


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("limit", [5.0, 2.0])
def test_the_first_gradient_is_that_of_advantage_weighted_regression_for_every_beta(beta, limit):
    velocity = V_OLD.clone().requires_grad_()
    (ADVANTAGES.clamp(-limit, limit) * adaptive(velocity)).sum().backward()
    got = gradient_of(nft(beta=beta, advantage_max=limit), V_OLD)
    assert_close(got, velocity.grad, rtol=1e-10, atol=1e-10)


def test_a_constant_reward_gives_exactly_no_gradient_at_the_old_policy():
    flat = replace(ROWS, advantages=torch.zeros(6, 1, dtype=torch.float64))
    assert torch.equal(gradient_of(nft(), V_OLD, flat), torch.zeros_like(X0))
    assert (gradient_of(nft(), V_OLD + 0.1 * STEP, flat) != 0).all()  # and pulls back to it elsewhere


def test_a_perfect_prediction_is_not_divided_by_zero():
    exact = NOISE - X0
    x, _ = nft().inputs(ROWS)
    scalars = nft().measure(ROWS, x, exact, {"old": exact})
    assert scalars["positive"].abs().max() < 1e-20 and scalars["negative"].abs().max() < 1e-20


def test_advantages_of_several_rewards_are_added_and_rows_are_weighed():
    split = torch.stack([ADVANTAGES - 1, torch.ones(6, dtype=torch.float64)], 1)
    both = replace(ROWS, advantages=split, weight=torch.arange(6.0, dtype=torch.float64))
    terms, _ = loss_of(nft(), V_OLD + STEP)
    assert_close(loss_of(nft(), V_OLD + STEP, both)[0], terms * torch.arange(6.0))


def test_only_the_trained_velocity_has_a_gradient(linear_policy):
    policy = linear_policy((3, 2), torch.float64)
    for name, offset in {"old": 0.5, "reference": -0.7}.items():
        policy.weights.add(name)
        with torch.no_grad():
            policy.weights.tensors(name)["bias"] += offset
    x0, advantages = X0.clone().requires_grad_(), ADVANTAGES[:, None].clone().requires_grad_()
    rows = replace(ROWS, x0=x0.detach(), advantages=advantages.detach())
    condition = policy.encode([type("P", (), {"metadata": {}})()])
    objective = nft(kl_weight=0.1)
    backward(objective, policy, rows, condition, micro_batch=6, share=1.0)

    variance = (1 - AT) ** 2 / 4 + AT**2
    flow = (AT - (1 - AT) / 4) / variance * ((1 - AT) * X0 + AT * NOISE)
    bias = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    x, _ = objective.inputs(ROWS)
    anchors = {"old": flow + 0.5, "reference": flow - 0.7}
    objective.loss(objective.measure(ROWS, x, flow + bias, anchors), ROWS)[0].sum().backward()
    assert_close(policy.bias.grad, bias.grad, rtol=1e-6, atol=1e-6)
    assert all(policy.weights.tensors(name)["bias"].grad is None for name in ("old", "reference"))


def test_the_reference_is_asked_for_only_with_a_kl_weight():
    assert nft(kl_weight=0.1).anchors == ("old", "reference")
    assert nft(old="slow").anchors == ("slow",)
