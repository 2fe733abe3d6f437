"""The Gaussian transition p(x' | x) that every kernel is: an affine step in x̂0, ε̂ and fresh noise z.

    x' = (1-σ') x̂0 + k ε̂ + s z,      x̂0 = x - σ v,      ε̂ = x + (1-σ) v,      z ~ N(0, I)

σ falls to σ' (1 is noise, 0 is data). A kernel is its two numbers per sample, k and s (`std`): k = σ', s = 0
is the Euler step of the ODE, and the total noise √(k² + s²) should be σ'. They are stored with a trajectory,
so that a transition can be scored again without the kernel; a learned variance alone is a function of the
network and has to be asked for again. Sorted by x and v,

    mean = (1 - (σ'-k)) x - J v,      J = (1-σ') σ - k (1-σ) = (σ-σ') + (σ'-k) (1-σ)

Shapes: B samples, ... latent axes. Everything is float32, or float64 for float64 latents: bfloat16 would
round the policy ratio to 1. `log_prob` and `kl` average over latent axes unless asked for the sum, as the
public code of Flow-GRPO and its successors does: a ratio of averages is the true ratio to the power 1/d for
d latent elements.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from thalweg.flow.broadcast import PerSample, over_latents, per_sample

Reduction = Literal["mean", "sum"]
"""Over the latent axes of each sample."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network with a learned variance says; other networks return the velocity alone."""

    velocity: Float[Tensor, "B ..."]
    variance_fraction: Float[Tensor, "B ..."]
    """ν, where log s² lies between two bounds of the kernel: 0 at the smaller, 1 at the larger."""


@dataclass(frozen=True, eq=False)
class Transition:
    """One denoising step as a distribution over x'; gradients reach the velocity through `mean`."""

    x: Float[Tensor, "B ..."]
    velocity: Float[Tensor, "B ..."]
    sigma: Float[Tensor, " B"]
    sigma_next: Float[Tensor, " B"]
    k: Float[Tensor, " B"]
    std: Float[Tensor, " B"] | Float[Tensor, "B ..."]
    """One number a sample, or with a learned variance one an element; then gradients reach it too."""

    @property
    def J(self) -> Float[Tensor, " B"]:
        """Sensitivity to the network: d mean / d velocity = -J."""
        return (self.sigma - self.sigma_next) + (self.sigma_next - self.k) * (1 - self.sigma)

    @cached_property
    def mean(self) -> Float[Tensor, "B ..."]:
        """E[x' | x]."""
        kept = 1 - (self.sigma_next - self.k)
        return over_latents(kept, self.x) * self.x - over_latents(self.J, self.x) * self.velocity

    def spread(self, factor: PerSample) -> "Transition":
        """The same mean with `factor` times the standard deviation."""
        return replace(self, std=self.std * per_sample(factor, self.x))

    def sample(self, noise: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """x' for this draw of z."""
        return self.mean + self._over_latents(self.std) * noise

    def log_prob(
        self, x_next: Float[Tensor, "B ..."], reduction: Reduction = "mean", *, normalized: bool = True
    ) -> Float[Tensor, " B"]:
        """log p(x' | x). Not normalized: -(x' - mean)² as Flow-CPS publishes it, 2 s² times as steep.

        A step without noise has no density. That is an error where `std` is on the CPU; on an accelerator
        looking would wait for the device at every call, so there the result is NaN and `require_density`
        looks on demand.
        """
        error = x_next.detach() - self.mean
        if not normalized:
            return _reduce(-(error**2), reduction)
        if self.std.device.type == "cpu":
            self.require_density()
        log_normalizer = self.std.log() + 0.5 * math.log(2 * math.pi)
        elements = -0.5 * (error / self._over_latents(self.std)) ** 2 - self._over_latents(log_normalizer)
        return _reduce(elements, reduction)

    def kl(self, other: "Transition", reduction: Reduction = "mean") -> Float[Tensor, " B"]:
        """KL(self || other): (mean - mean')² / (2 s²) for one s, as two policies under one kernel have."""
        if self.std.device.type == "cpu":
            self.require_density()
            other.require_density()
        scale = self.std / other.std
        from_std = 0.5 * (scale**2 - 1) - scale.log()
        drift = (self.mean - other.mean) / self._over_latents(other.std)
        return _reduce(0.5 * drift**2 + self._over_latents(from_std), reduction)

    def require_density(self) -> None:
        """Raises unless every sample has std > 0; waits for the device that holds `std`."""
        without = (~(self.std > 0)).nonzero().tolist()
        if without:
            at, to = (t[without[0][0]].item() for t in (self.sigma, self.sigma_next))
            std = self.std[tuple(without[0])].item()
            raise ValueError(
                f"std={std:g} at sigma={at:g} -> {to:g}: a log-probability needs falling sigmas and std > 0; "
                "take this step with a solver, or leave it out of the trained steps"
            )

    def _over_latents(self, value: Tensor) -> Tensor:
        return value if value.ndim == self.x.ndim else over_latents(value, self.x)


def _reduce(elements: Tensor, reduction: Reduction) -> Tensor:
    latents = elements.flatten(1)
    return latents.mean(1) if reduction == "mean" else latents.sum(1)
