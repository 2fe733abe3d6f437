"""A velocity field of one trained number with a curved dependence on everything, in float64."""

import math

import torch
from torch import Tensor

from thalweg.core.values import Paths


class NonlinearField:
    """v = tanh(θ x + σ) + θ² σ; named weights are other θ. The reward is Σ sin(x0), twice for the prompt."""

    def __init__(self, theta: float = 0.7, **named: float) -> None:
        self.theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        self.named = {name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()}

    @staticmethod
    def of(theta: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
        return torch.tanh(theta * x + level) + theta**2 * level

    def velocity(self, x: Tensor, sigma: Tensor, *, recompute: bool = False) -> Tensor:
        return self.of(self.theta, x, sigma)

    def velocity_of(self, name: str, x: Tensor, sigma: Tensor) -> Tensor:
        return self.of(self.named[name], x.detach(), sigma)

    def pull_back(self, name: str, x: Tensor, sigma: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            found = self.of(self.named[name], at, sigma)
            return found.detach(), torch.autograd.grad(found, at, slope)[0]

    def reward(self, latents: Tensor, wording: str = "{}") -> Tensor:
        return (2.0 if wording == "{}" else 1.0) * torch.sin(latents).flatten(1).sum(1)

    def as_stored(self, x: Tensor) -> Tensor:
        return x


def paths(states: Tensor, sigmas: Tensor, step: int = 0) -> Paths:
    count = len(states)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Paths(
        states=states,
        sigmas=sigmas,
        advantages=torch.zeros(count, 1),
        weight=torch.ones(count),
        condition=zeros,
        prompt_slot=zeros,
        seed_group=zeros,
        sample=torch.arange(count),
        step=zeros + step,
    )


def slope_by_differences(loss, field: NonlinearField, step: float = 1e-6) -> float:
    """d loss() / d θ by central differences."""
    values = []
    with torch.no_grad():
        for move in (step, -2 * step):
            field.theta += move
            values.append(float(loss()))
        field.theta += step
    return (values[0] - values[1]) / (2 * step)


def slope_of(loss, field: NonlinearField) -> float:
    (found,) = torch.autograd.grad(loss(), field.theta)
    assert math.isfinite(float(found))
    return float(found)
