"""Flow-SDE, the sampler of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470, Eq. 9): Euler-Maruyama with

    g = a √(σ / (1-σ)),      k = σ' - g² Δ / (2σ),      s = g √Δ,      Δ = σ - σ' > 0

Total noise overshoots: k² + s² = σ'² + g² Δ²/σ + (g² Δ / (2σ))². Shapes: B samples, ... latent axes.
At σ = 1, where g is infinite, 1 - σ' replaces 1 - σ as in the authors' code (yifan123/flow_grpo), so s = a.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class FlowSDE(Coefficients):
    """Noise that grows with σ; leaves more of it in x' than σ' says."""

    kind: Literal["flow_sde"] = "flow_sde"
    noise_level: NonNegativeFloat = 0.7
    """a; 0 is the Euler step of the ODE."""
    sigma_max: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest σ inside 1 - σ; None replaces σ = 1 alone, by σ'."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        if self.sigma_max is None:
            # Not sigma == 1: a schedule worked out in float32 may miss it by a rounding.
            finite = torch.where(sigma > 1 - 1e-6, sigma_next, sigma)
        else:
            finite = sigma.clamp(max=self.sigma_max)
        variance = (self.noise_level * noise_factor) ** 2 * sigma / (1 - finite) * (sigma - sigma_next)
        return sigma_next - variance / (2 * sigma), variance.sqrt()
