"""The adjoint of a stored trajectory: how the final reward changes with each of its states.

    x' = (1 - (σ'-k)) x - J v(x, σ) + noise,      a = (1 - (σ'-k)) a' - J (dv/dx)^T a',      a at data given

One product with the Jacobian a step, from data to noise, and no graph across steps. k = σ' is the step of the
ODE. Shapes: B rows, M levels of a row, ... latent axes.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Paths
from thalweg.flow import Kernel
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import VelocityField


def reward_slope(field: VelocityField, x0: Float[Tensor, "B ..."]) -> tuple[Tensor, Tensor]:
    """(rewards of finished latents, their gradient there); leaves no graph behind."""
    with torch.enable_grad():
        at = x0.detach().requires_grad_()
        reward = field.reward(at)
        (slope,) = torch.autograd.grad(reward.sum(), at)
    return reward.detach(), slope


def adjoints(
    field: VelocityField, weights: str, rows: Paths, at_data: Float[Tensor, "B ..."]
) -> list[Float[Tensor, "B ..."]]:
    """Along the rows' states under the named weights: entry i is that of the state that step i leads to."""
    k = rows.sigmas if rows.k is None else rows.k
    found = [at_data]
    for i in range(rows.sigmas.shape[1] - 2, 0, -1):
        (sigma, sigma_next), later = rows.sigmas[:, i : i + 2].unbind(1), found[-1]
        _, pulled = field.pull_back(weights, rows.states[:, i], sigma, later)
        gap = sigma_next - k[:, i + 1]
        sensitivity = over_latents(sigma - sigma_next + gap * (1 - sigma), later)
        found.append(over_latents(1 - gap, later) * later - sensitivity * pulled)
    return found[::-1]


def memory_of_noise(kernel: Kernel, sigmas: Float[Tensor, " M"]) -> float:
    """The correlation of a sample with its initial noise for data N(0, 1); the last step is the ODE's."""
    kept, variance = 1.0, 1.0
    for at, to in pairwise(sigmas.double()):
        slope = (2 * at - 1) / ((1 - at) ** 2 + at**2)  # v = slope x
        one = torch.ones(1, 1, dtype=torch.float64)
        k, std = to, torch.zeros(())
        if to > 0:
            step = kernel.transition(one, slope * one, at, to)
            k, std = step.k[0], step.std.flatten()[0]
        factor = float(1 - (to - k) - (at - to + (to - k) * (1 - at)) * slope)
        kept, variance = kept * factor, variance * factor**2 + float(std) ** 2
    return kept / math.sqrt(variance)
