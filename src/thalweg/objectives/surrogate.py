"""What stands in for -log p(x0): how far the velocity is from the noised sample's own.

    x = (1-σ) x0 + σ ε,      v = ε - x0,      l = <(v_θ - v)²>,      E = w l   (`regression`)
    E = (σ/p) [(l + c)^p - c^p],  c = 1e-10                                    (`huber`)

<.> is a mean over latent elements, weighted by m where a region m of them is looked at, and w has no
gradient, so that ∇E = w ∇l in both. Only `elbo` is a bound of log p(x0), up to a constant that differences of
two models cancel; the others have its sign and another scale. Shapes: B rows, ... latent axes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.part import Part

FLOOR = 1e-5
"""Least divisor of the adaptive weights, as NVlabs/DiffusionNFT has it."""
SMOOTHING = 1e-10
"""c of `huber`, as scxue/advantage_weighted_matching has it."""

ELBO_SIGMA_MIN = 0.01
"""Least noise level of `elbo`, whose weight grows as 1/σ without end."""

Region = Float[Tensor, "B ..."] | None
"""m: how much each latent element counts; axes of length 1 stand for all. None: all alike."""

Weighting = Literal["uniform", "sigma", "x", "adaptive", "adaptive_velocity", "elbo"]


def _adaptive(mean_abs: Tensor, sigma: Tensor, size: int) -> Tensor:
    return sigma**2 / (sigma * mean_abs).clamp(min=FLOOR)


WEIGHTS: Mapping[Weighting, Callable[[Tensor, Tensor, int], Tensor]] = {
    "uniform": lambda mean_abs, sigma, size: sigma.new_ones(sigma.shape),
    "sigma": lambda mean_abs, sigma, size: sigma,
    "x": lambda mean_abs, sigma, size: sigma**2,
    "adaptive": _adaptive,
    "adaptive_velocity": lambda mean_abs, sigma, size: 1 / mean_abs.clamp(min=FLOOR),
    "elbo": lambda mean_abs, sigma, size: size * (1 - sigma) / sigma,
}
"""w from <|v_θ - v|>, σ and the number of latent elements: 1; σ; σ², the error of x̂0; σ² / <|x̂0 - x0|>, the
error of x̂0 over its own size; 1 / <|v_θ - v|>; and (1-σ)/σ with a sum over elements, for which l is an ELBO.
"""


class Regression(Part):
    """A weighted squared error."""

    kind: Literal["regression"] = "regression"
    weighting: Weighting = "adaptive"
    """w: `uniform`, `sigma`, `x`, `adaptive`, `adaptive_velocity` or `elbo`."""

    def weight(
        self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], region: Region = None
    ) -> Float[Tensor, " B"]:
        """w, without gradient. In float64: the divisor sets the scale of the whole row."""
        mean_abs = mean_over_latents(residual.detach().double().abs(), region)
        size = math.prod(residual.shape[1:])
        return WEIGHTS[self.weighting](mean_abs, sigma.to(mean_abs), size).to(residual.dtype)

    def error(
        self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], region: Region = None
    ) -> Float[Tensor, " B"]:
        """E of a residual v_θ - v."""
        return self.weight(residual, sigma, region) * squared(residual, region)


class Huber(Part):
    """A power of the squared error, so that rows far off count less (AWM, arXiv:2509.25050).

    p = 1/2 is twice the authors' "huber".
    """

    kind: Literal["huber"] = "huber"
    power: float = Field(default=0.25, gt=0, le=1)
    """p; 1 gives σ l."""

    def weight(
        self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], region: Region = None
    ) -> Float[Tensor, " B"]:
        """dE/dl, without gradient."""
        return sigma.to(residual) * (squared(residual.detach(), region) + SMOOTHING) ** (self.power - 1)

    def error(
        self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], region: Region = None
    ) -> Float[Tensor, " B"]:
        """E of a residual v_θ - v."""
        rise = (squared(residual, region) + SMOOTHING) ** self.power - SMOOTHING**self.power
        return sigma.to(residual) / self.power * rise


def squared(difference: Float[Tensor, "B ..."], region: Region = None) -> Float[Tensor, " B"]:
    """<d²>, a mean over latent elements."""
    return mean_over_latents(difference.pow(2), region)


def mean_over_latents(values: Float[Tensor, "B ..."], region: Region = None) -> Float[Tensor, " B"]:
    """The mean over latent elements, weighted by the region; 0 where it is empty."""
    if region is None:
        return values.flatten(1).mean(1)
    weight = region.to(values).expand_as(values).flatten(1)
    mass = weight.sum(1)
    return (values.flatten(1) * weight).sum(1) / torch.where(mass == 0, 1, mass)


Surrogate = Annotated[Regression | Huber, Field(discriminator="kind")]
