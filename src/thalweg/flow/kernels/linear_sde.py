"""Linear SDE, the sampler of Flash-GRPO on Wan (2026, arXiv:2605.15980): Euler-Maruyama with g linear in σ.

    g = g_min + (g_max - g_min) σ,      k = σ' - g² Δ / (2σ),      s = g √Δ,      Δ = σ - σ' > 0

Total noise overshoots as in Flow-SDE. Finite at σ = 1. Shapes: B samples, ... latent axes.
The authors' code (Shredded-Pork/Flash-GRPO) takes g_max from the schedule, its second noise level. A kernel
does not see the schedule, so it is a number here.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class LinearSDE(Coefficients):
    """Noise in proportion to σ: most at the start, none at the data."""

    kind: Literal["linear_sde"] = "linear_sde"
    noise_min: NonNegativeFloat = 0.0
    """g_min, at σ = 0; both at 0 are the Euler step of the ODE."""
    noise_max: NonNegativeFloat = 0.9828
    """g_max, at σ = 1. The default is the second level of 20 steps at shift 3."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        g = noise_factor * (self.noise_min + (self.noise_max - self.noise_min) * sigma)
        variance = g**2 * (sigma - sigma_next)
        return sigma_next - variance / (2 * sigma), variance.sqrt()
