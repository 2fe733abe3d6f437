"""DPM-Solver++ SDE, first order (Lu et al. 2022, arXiv:2211.01095), which is the DDPM posterior.

    k = σ' e^{-h},      s = σ' √(1 - e^{-2h}),      h = λ' - λ,      λ = log((1-σ)/σ)

With q = 1 - e^{-h} = Δ / (σ (1-σ')), Δ = σ - σ' > 0, nothing is singular: k = σ' (1-q), s = σ' √(1 - (1-q)²).
At σ = 1 all the noise is drawn again, at σ' = 0 none. A noise factor f multiplies the a of Precise, so h
becomes f² h. The higher orders reuse earlier predictions, so only this one is a transition p(x' | x).
Shapes: B samples, ... latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients


class DPMSolverSDE(Coefficients):
    """Precise at a² = 2; it has no noise level of its own."""

    kind: Literal["dpm_sde"] = "dpm_sde"

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        q = (sigma - sigma_next) / (sigma * (1 - sigma_next))
        # Not f² log1p(-q): it has to be 0 for f = 0 where q = 1.
        log_rho = torch.special.xlog1py(noise_factor**2, -q.clamp(max=1))
        return sigma_next * log_rho.exp(), sigma_next * (-torch.expm1(2 * log_rho)).sqrt()
