"""What stands in for -log p(x0): how far the velocity is from the noised sample's own.

    x = (1-σ) x0 + σ ε,      v = ε - x0,      l = <(v_θ - v)²>,      E = w l   (`regression`)
    E = (σ/p) [(l + c)^p - c^p],  c = 1e-10                                    (`huber`)

<.> is a mean over latent elements and w has no gradient, so that ∇E = w ∇l in both. Only `elbo` is a bound of
log p(x0), up to a constant that differences of two models cancel; the others have its sign and another
scale. Shapes: B rows, ... latent axes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.part import Part

FLOOR = 1e-5
"""Least divisor of the adaptive weights, as NVlabs/DiffusionNFT has it."""
SMOOTHING = 1e-10
"""c of `huber`, as scxue/advantage_weighted_matching has it."""

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

    def weight(self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """w, without gradient. In float64: the divisor sets the scale of the whole row."""
        mean_abs = residual.detach().flatten(1).double().abs().mean(1)
        size = math.prod(residual.shape[1:])
        return WEIGHTS[self.weighting](mean_abs, sigma.to(mean_abs), size).to(residual.dtype)

    def error(self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """E of a residual v_θ - v."""
        return self.weight(residual, sigma) * squared(residual)


class Huber(Part):
    """A power of the squared error, so that rows far off count less (AWM, arXiv:2509.25050).

    p = 1/2 is twice the authors' "huber".
    """

    kind: Literal["huber"] = "huber"
    power: float = Field(default=0.25, gt=0, le=1)
    """p; 1 gives σ l."""

    def weight(self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """dE/dl, without gradient."""
        return sigma.to(residual) * (squared(residual.detach()) + SMOOTHING) ** (self.power - 1)

    def error(self, residual: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """E of a residual v_θ - v."""
        rise = (squared(residual) + SMOOTHING) ** self.power - SMOOTHING**self.power
        return sigma.to(residual) / self.power * rise


def squared(difference: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """<d²>, a mean over latent elements."""
    return difference.pow(2).flatten(1).mean(1)


Surrogate = Annotated[Regression | Huber, Field(discriminator="kind")]
