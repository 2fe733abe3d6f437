"""Dance-SDE, the sampler of DanceGRPO (Xue et al. 2025, arXiv:2505.07818): Euler-Maruyama with a constant g.

    g = η,      k = σ' - η² Δ / (2σ),      s = η √Δ,      Δ = σ - σ' > 0

Total noise overshoots as in Flow-SDE. Finite at σ = 1. Shapes: B samples, ... latent axes.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class DanceSDE(Coefficients):
    """The same noise per unit of σ everywhere, down to the data."""

    kind: Literal["dance_sde"] = "dance_sde"
    noise_level: NonNegativeFloat = 0.3
    """η; 0 is the Euler step of the ODE."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        variance = (self.noise_level * noise_factor) ** 2 * (sigma - sigma_next)
        return sigma_next - variance / (2 * sigma), variance.sqrt()
