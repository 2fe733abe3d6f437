"""CPS, coefficients-preserving sampling (Wang and Yu 2025, arXiv:2509.05952): redraws part of the noise.

    k = σ' cos(η π/2),      s = σ' sin(η π/2)

The total noise √(k² + s²) is exactly σ', nothing is singular at σ = 1, and the step to σ' = 0 is clean. It
is not the discretisation of an SDE: each step redraws a fixed share, so many steps contract the marginals.
The paper's log-probability leaves out 1/(2 s²) and the constants: `log_prob(..., normalized=False)`.
A noise factor that would raise η above 1 leaves it at 1: there is no more noise to draw again.
Shapes: B samples, ... latent axes.
"""

import math
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class CPS(Coefficients):
    """A fixed share of the noise replaced at every step; x' is exactly as noisy as σ' says."""

    kind: Literal["cps"] = "cps"
    noise_level: Annotated[float, Field(ge=0, le=1)] = 0.8
    """η: 0 is the Euler step of the ODE, 1 draws all the noise again."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        angle = (self.noise_level * noise_factor).clamp(max=1) * (math.pi / 2)
        return sigma_next * angle.cos(), sigma_next * angle.sin()
