"""Rows of 2 prompts x 4 samples x 2 levels with free velocities, in float64."""

import torch
from torch import Tensor

from thalweg.core.values import Samples
from thalweg.objectives import Forward

GENERATOR = torch.Generator().manual_seed(0)
X0, NOISE, V_OLD, V_REF, V_EMA, STEP = torch.randn(6, 16, 3, 2, dtype=torch.float64, generator=GENERATOR)
SIGMA = torch.linspace(0.1, 1.0, 16, dtype=torch.float64)
PROMPT = torch.tensor([0] * 8 + [1] * 8)
SAMPLE = torch.arange(8).repeat_interleave(2)
LEVEL = torch.tensor([0, 1] * 8)
# Each prompt's add up to 0; no two are equal.
ADVANTAGE = torch.tensor([-1.5, 0.2, 1.7, -0.4, 0.9, -0.7, 0.6, -0.8], dtype=torch.float64)[SAMPLE]
BEST_AND_WORST = torch.tensor([-1.0, 0, 1, 0, 1, 0, 0, -1], dtype=torch.float64)[SAMPLE]
TARGET = NOISE - X0
ROWS = Samples(
    x0=X0,
    sigma=SIGMA,
    noise=NOISE,
    advantages=ADVANTAGE[:, None],
    weight=torch.ones(16, dtype=torch.float64),
    condition=torch.zeros(16, dtype=torch.int64),
    prompt_slot=PROMPT,
    seed_group=torch.zeros(16, dtype=torch.int64),
    sample=SAMPLE,
    step=LEVEL,
)
ANCHORS = {"old": V_OLD, "reference": V_REF, "ema": V_EMA}


def mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def terms_of(objective: Forward, velocity: Tensor, rows: Samples = ROWS, anchors=ANCHORS):
    x, _ = objective.inputs(rows)
    return objective.loss(objective.measure(rows, x, velocity, anchors), rows)


def gradient_of(objective: Forward, velocity: Tensor, rows: Samples = ROWS, anchors=ANCHORS) -> Tensor:
    """Of the summed terms, in the velocity."""
    velocity = velocity.clone().requires_grad_()
    terms_of(objective, velocity, rows, anchors)[0].sum().backward()
    return velocity.grad


def errors_of(objective: Forward, velocity: Tensor, rows: Samples = ROWS) -> Tensor:
    return objective.surrogate.error(velocity - (rows.noise - rows.x0), rows.sigma)


def weighted_gradient(objective: Forward, velocity: Tensor, weight: Tensor) -> Tensor:
    """Σ weight ∇E."""
    velocity = velocity.clone().requires_grad_()
    (weight * errors_of(objective, velocity)).sum().backward()
    return velocity.grad
