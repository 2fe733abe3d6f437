"""Precise (2026, arXiv:2605.23522): the SDE of Flow-SDE, integrated exactly over a step while x̂0 is held.

    k = σ' ρ,      s = σ' √(1-ρ²),      log ρ = -½ ∫_{σ'}^{σ} g(u)²/u² du,      g(u) = a √(u / (1-u))

In closed form ρ = (1-q)^{a²/2}, 1-q = σ' (1-σ) / (σ (1-σ')), so q = (σ-σ') / (σ (1-σ')). The total noise
√(k² + s²) is exactly σ', and two steps with one x̂0 are one long step. With a² = 2 it is `DPMSolverSDE`.
At σ = 1 the limit is ρ = 0: the first step forgets the initial noise; at σ' = 0 it is s = 0.
Shapes: B samples, ... latent axes.
Not in the paper: `sigma_max` bounds g as in Flow-SDE, g(u)² = a² u / (1 - min(u, sigma_max)); the integral
stays exact.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class Precise(Coefficients):
    """Flow-SDE without its excess noise."""

    kind: Literal["precise"] = "precise"
    noise_level: NonNegativeFloat = 1.5
    """a; 0 is the Euler step of the ODE."""
    sigma_max: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest u inside 1 - u; None lets the first step draw all the noise again."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        bound = 1.0 if self.sigma_max is None else self.sigma_max
        below, below_next = sigma.clamp(max=bound), sigma_next.clamp(max=bound)
        q = (below - below_next) / (below * (1 - below_next))
        half_square = (self.noise_level * noise_factor) ** 2 / 2
        # q = 1 at σ = 1 and at σ' = 0: log1p gives -inf, so ρ is 0, but xlog1py keeps ρ = 1 for a = 0.
        log_rho = torch.special.xlog1py(half_square, -q.clamp(max=1))
        if self.sigma_max is not None:
            log_above = (sigma.clamp(min=bound) / sigma_next.clamp(min=bound)).log()
            log_rho = log_rho - half_square * log_above / (1 - bound)
        return sigma_next * log_rho.exp(), sigma_next * (-torch.expm1(2 * log_rho)).sqrt()
