"""The forward process of a flow: the straight line from data to noise (Liu et al. 2022, arXiv:2209.03003).

    x = (1-σ) x0 + σ ε,      v = ε - x0

σ is 1 at noise and 0 at data. Objectives that train on noised samples see the flow through this file only.
Shapes: B samples, *L latent axes. Results are float32, or float64 for float64 latents.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from thalweg.core.part import Part
from thalweg.flow.broadcast import PerSample, over_latents, working_dtype
from thalweg.flow.conversions import velocity_from_x0


class LinearPath(Part):
    """The path of rectified flows: SD3, FLUX, Wan, Qwen-Image."""

    kind: Literal["linear"] = "linear"

    def corrupt(
        self, x0: Float[Tensor, "B *L"], noise: Float[Tensor, "B *L"], sigma: PerSample
    ) -> Float[Tensor, "B *L"]:
        """x, the data at noise level σ."""
        level = over_latents(sigma, x0)
        return (1 - level) * x0 + level * noise

    def noise(
        self, x0: Float[Tensor, "B *L"], x: Float[Tensor, "B *L"], sigma: PerSample
    ) -> Float[Tensor, "B *L"]:
        """The noise under which `corrupt` gives x, to rounding, for σ > 0; at σ = 1 that is x itself."""
        level = over_latents(sigma, x0)
        return (x - (1 - level) * x0) / level

    def target(self, x0: Float[Tensor, "B *L"], noise: Float[Tensor, "B *L"]) -> Float[Tensor, "B *L"]:
        """The velocity a network is asked for at every point of the line."""
        return noise.to(working_dtype(x0)) - x0

    def surrogate(
        self,
        prediction: Float[Tensor, "B *L"],
        x0: Float[Tensor, "B *L"],
        x: Float[Tensor, "B *L"],
        sigma: PerSample,
    ) -> Float[Tensor, " B"]:
        """(v - (x-x0)/σ)² averaged over latent axes, for σ > 0: stands in for -log p(x0).

        `x` as `corrupt` returned it: rounded to bfloat16, the division by a small σ would magnify the
        rounding.
        """
        return (prediction - velocity_from_x0(x, x0, sigma)).pow(2).flatten(1).mean(1)
