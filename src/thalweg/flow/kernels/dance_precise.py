"""Dance-Precise: the SDE of Dance-SDE, integrated exactly over a step while x̂0 is held, as Precise does.

    k = σ' ρ,      s = σ' √(1-ρ²),      log ρ = -½ ∫_{σ'}^{σ} η²/u² du = -(η²/2) (1/σ' - 1/σ)

The `dance_precise` of the Precise paper (2026, arXiv:2605.23522). The total noise √(k² + s²) is exactly σ',
and two steps with one x̂0 are one long step. At σ = 1 some of the initial noise is kept; at σ' = 0 the limit
is s = 0.
Shapes: B samples, ... latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class DancePrecise(Coefficients):
    """Dance-SDE without its excess noise."""

    kind: Literal["dance_precise"] = "dance_precise"
    noise_level: NonNegativeFloat = 0.3
    """η; 0 is the Euler step of the ODE."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        half_square = (self.noise_level * noise_factor) ** 2 / 2
        # Held away from 0, so that η = 0 gives ρ = 1 at σ' = 0 too.
        log_rho = -half_square * (1 - sigma_next / sigma) / sigma_next.clamp(min=1e-30)
        return sigma_next * log_rho.exp(), sigma_next * (-torch.expm1(2 * log_rho)).sqrt()
