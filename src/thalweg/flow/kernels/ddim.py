"""DDIM with noise (Song et al. 2020, arXiv:2010.02502, Eq. 12 and 16), in the coordinates of a flow.

    k = σ' √(1 - η² r),      s = σ' η √r,      r = 1 - (1-q)²,      1-q = σ' (1-σ) / (σ (1-σ'))

The paper steps x̄ = √ᾱ x0 + √(1-ᾱ) ε with std η √[(1-ᾱ')/(1-ᾱ) · (1 - ᾱ/ᾱ')]. Divided by √ᾱ' + √(1-ᾱ')
(`flow/variance_preserving.py`) it depends on the signal-to-noise ratio alone and is this step. η = 1 is the
DDPM posterior, `DPMSolverSDE`. The total noise √(k² + s²) is exactly σ'. At σ = 1 the share η of the noise is
drawn again, at σ' = 0 none. A noise factor that would raise η above 1 leaves it at 1.
Shapes: B samples, ... latent axes.
"""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class DDIM(Coefficients):
    """The sampler of variance-preserving models such as Stable Diffusion 1.5, after DanceGRPO and DDPO."""

    kind: Literal["ddim"] = "ddim"
    noise_level: Annotated[float, Field(ge=0, le=1)] = 1.0
    """η; 0 is the Euler step of the ODE."""

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        q = ((sigma - sigma_next) / (sigma * (1 - sigma_next))).clamp(max=1)
        share = (self.noise_level * noise_factor).clamp(max=1) ** 2
        # Not 1 - η² r: near η = 1 and q = 1 that is a rounding error.
        kept = 1 - share + share * (1 - q) ** 2
        return sigma_next * kept.sqrt(), sigma_next * (share * q * (2 - q)).sqrt()
