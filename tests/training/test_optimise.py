import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.models import NamedWeights
from thalweg.training.optimise import Optim, make_optimizer, update


def one_step(gradient, updates=0, **settings):
    """Weights after one update from 0, with what it reports."""
    parameter = nn.Parameter(torch.zeros(len(gradient)))
    weights = NamedWeights({"w": parameter})
    optim = Optim.model_validate({"learning_rate": 0.1, **settings})
    optimizer = make_optimizer(weights, optim)
    parameter.grad = torch.tensor(gradient)
    norm, taken = update(weights, optimizer, optim, Processes(), updates)
    return parameter, norm, taken


def test_the_first_step_of_adam_goes_the_learning_rate_against_the_sign_of_the_gradient():
    parameter, norm, taken = one_step([3.0, -4.0], max_grad_norm=None)
    assert_close(parameter.data, torch.tensor([-0.1, 0.1]))
    assert (norm, taken) == (5.0, True)
    assert parameter.grad is None


def test_the_reported_norm_is_that_before_clipping_and_clipping_reaches_adam():
    # Adam forgets the scale of its first gradient but for epsilon: m / (|g| + eps), |g| = 1/2 after the clip.
    parameter, norm, _ = one_step([4.0], max_grad_norm=0.5, epsilon=0.5)
    assert norm == 4.0
    assert_close(parameter.data, torch.tensor([-0.1 * 0.5 / (0.5 + 0.5)]))


@pytest.mark.parametrize(("updates", "share"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (9, 1.0)])
def test_the_learning_rate_rises_linearly_over_the_warm_up(updates, share):
    parameter, _, _ = one_step([1.0], updates, warmup_updates=3)
    assert_close(parameter.data, torch.tensor([-0.1 * share]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_leaves_the_weights(bad):
    parameter, norm, taken = one_step([1.0, bad])
    assert parameter.tolist() == [0, 0]
    assert not taken and not math.isfinite(norm)
    assert parameter.grad is None


def test_weight_decay_shrinks_weights_by_the_learning_rate_times_itself():
    parameter = nn.Parameter(torch.ones(1))
    weights = NamedWeights({"w": parameter})
    optim = Optim(learning_rate=0.1, weight_decay=0.5)
    parameter.grad = torch.zeros(1)
    update(weights, make_optimizer(weights, optim), optim, Processes(), 0)
    assert_close(parameter.data, torch.tensor([1 - 0.1 * 0.5]))
