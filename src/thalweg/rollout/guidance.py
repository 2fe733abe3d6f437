"""Drawn steps steered by a reward of noisy states, Euphonium (arXiv:2602.04928; zerzerzerz/Euphonium).

    x' = mean + strength Δ ∇_x r(x, σ, prompt) + s z,      Δ = σ - σ'

The log-probability stays that of the unguided step, in rollout and training alike: so the policy is pulled
towards the guided samples and needs no guidance later. With strength g²/(2 beta) this is the optimal control
of a KL-regularised problem. Shapes: n rows, ... latent axes.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Prompt

Value = Callable[[Tensor, Tensor, Sequence[Prompt]], Tensor]
"""(x, sigma, prompts) -> the reward of each noisy state, differentiable in x."""


class Guidance(Part):
    """How hard and at which steps."""

    reward: str
    """Name of a reward of the recipe that scores noisy states (`per_step: true`)."""
    strength: PositiveFloat = 0.01
    """k_g; Euphonium has .01 = eta² / (2 beta) with eta .25 and beta 3.125."""
    steps: tuple[int, ...] | None = None
    """Which drawn steps are steered; None: all. Late ones, where the reward of a noisy state can be
    trusted.
    """
    gradient: Literal["exact", "spsa"] = "exact"
    """By autograd, or from two values along a random direction: (r(x + q u) - r(x - q u)) / (2 q) u."""
    probe_size: PositiveFloat = 0.01
    """q of `spsa`."""
    normalize: bool = False
    """Divide each sample's gradient by its root mean square."""
    scale_by_step: bool = True
    """Multiply by Δ."""
    max_shift: float | None = Field(default=None, gt=0)
    """Largest root mean square of a shift; None: no limit."""

    def acts(self, step: int) -> bool:
        """Whether this denoising step is steered."""
        return self.steps is None or step in self.steps

    def shift(
        self,
        value: Value,
        x: Float[Tensor, "n ..."],
        sigma: float,
        sigma_next: float,
        prompts: Sequence[Prompt],
        direction: Float[Tensor, "n ..."],
    ) -> Float[Tensor, "n ..."]:
        """What is added to x'. `direction` is standard normal; only `spsa` reads it."""
        levels = torch.full((len(x),), sigma, device=x.device)
        if self.gradient == "exact":
            with torch.enable_grad():
                at = x.detach().requires_grad_()
                slope = torch.autograd.grad(value(at, levels, prompts).sum(), at)[0]
        else:
            size = self.probe_size
            gap = value(x + size * direction, levels, prompts) - value(x - size * direction, levels, prompts)
            slope = (gap / (2 * size)).view(-1, *[1] * (x.ndim - 1)) * direction
        if self.normalize:
            slope = slope / _size(slope).clamp(min=1e-12)
        moved = self.strength * ((sigma - sigma_next) if self.scale_by_step else 1.0) * slope
        if self.max_shift is None:
            return moved
        return moved * (self.max_shift / _size(moved).clamp(min=1e-12)).clamp(max=1)


def _size(x: Tensor) -> Tensor:
    """Root mean square of each sample, broadcastable over its latents."""
    return x.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))
