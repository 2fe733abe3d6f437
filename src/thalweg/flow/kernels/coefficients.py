"""A Gaussian kernel is its two numbers a step; all else follows in `flow.gaussian`. Shapes: B samples, ...
latent axes.
"""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from thalweg.core.part import Part
from thalweg.flow.broadcast import PerSample, per_sample
from thalweg.flow.gaussian import Transition


class Coefficients(Part):
    """An interface: a kernel says its numbers, and has the step that they make."""

    @abstractmethod
    def coefficients(
        self, sigma: Float[Tensor, " B"], sigma_next: Float[Tensor, " B"], noise_factor: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(k, s) at (σ, σ'), the noise level multiplied by the factor."""

    def transition(
        self,
        x: Float[Tensor, "B ..."],
        prediction: Float[Tensor, "B ..."],
        sigma: PerSample,
        sigma_next: PerSample,
        noise_factor: PerSample = 1.0,
    ) -> Transition:
        """p(x' | x) where the network predicts this velocity.

        Trees whose noise grows with depth give each sample a factor of its own.
        """
        sigma, sigma_next, factor = (per_sample(value, x) for value in (sigma, sigma_next, noise_factor))
        return Transition(x, prediction, sigma, sigma_next, *self.coefficients(sigma, sigma_next, factor))
