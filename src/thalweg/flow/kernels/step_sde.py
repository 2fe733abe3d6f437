"""Step SDE, the calibrated noise of DenseGRPO (2026, arXiv:2601.20218): Euler-Maruyama with g from a table.

    g = ψ(σ),      k = σ' - g² Δ / (2σ),      s = g √Δ,      Δ = σ - σ' > 0

The paper has one ψ for each step of its schedule; here each stands at a noise level, with straight lines
between and the nearest one beyond, so that a table serves another number of steps too. Finite at σ = 1.
Shapes: B samples, ... latent axes.
"""

from itertools import pairwise
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, field_validator
from torch import Tensor

from thalweg.flow.kernels.coefficients import Coefficients

Sigma = Annotated[float, Field(ge=0, le=1)]


class StepSDE(Coefficients):
    """As much noise at each level as a table says."""

    kind: Literal["step_sde"] = "step_sde"
    levels: Annotated[tuple[tuple[Sigma, NonNegativeFloat], ...], Field(min_length=1)]
    """(σ, g) from noise to data; g = 0 is the Euler step of the ODE."""

    @field_validator("levels")
    @classmethod
    def _falling(cls, levels: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for (sigma, _), (sigma_next, _) in pairwise(levels):
            if sigma_next >= sigma:
                raise ValueError(
                    f"{sigma:g} is followed by {sigma_next:g}: the noise levels must fall, from noise to data"
                )
        return levels

    def noise_at(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """ψ(σ), before any noise factor."""
        noise = sigma.new_full((), self.levels[0][1]).expand_as(sigma)
        for (high, g_high), (low, g_low) in pairwise(self.levels):
            below_high = ((high - sigma) / (high - low)).clamp(0, 1)
            noise = noise + (g_low - g_high) * below_high
        return noise

    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s)."""
        g = noise_factor * self.noise_at(sigma)
        variance = g**2 * (sigma - sigma_next)
        return sigma_next - variance / (2 * sigma), variance.sqrt()
