"""Velocity, clean latents, noise and score: four readings of one prediction at (x, σ).

On the linear path x = (1-σ) x0 + σ ε with velocity v = ε - x0:

    x̂0 = x - σ v,      ε̂ = x + (1-σ) v,      score = ∇ log p(x) = -ε̂ / σ

σ is 1 at noise and 0 at data. Back from x̂0 and to the score needs σ > 0; back from ε̂ needs σ < 1.
Shapes: B samples, ... latent axes. Results are float32, or float64 for float64 latents.
"""

from jaxtyping import Float
from torch import Tensor

from thalweg.flow.broadcast import PerSample, over_latents


def x0_from_velocity(
    x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """x̂0, the clean latents that the velocity points to."""
    return x - over_latents(sigma, x) * velocity


def noise_from_velocity(
    x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """ε̂, the noise that the velocity comes from."""
    return x + (1 - over_latents(sigma, x)) * velocity


def score_from_velocity(
    x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """∇ log p(x) at noise level σ > 0 (Tweedie's formula)."""
    return -noise_from_velocity(x, velocity, sigma) / over_latents(sigma, x)


def velocity_from_x0(
    x: Float[Tensor, "B *L"], x0: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """The velocity of the line from x0 through x, for σ > 0."""
    return (x - x0) / over_latents(sigma, x)


def velocity_from_noise(
    x: Float[Tensor, "B *L"], noise: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """The velocity of the line from x through the noise, for σ < 1."""
    return (noise - x) / (1 - over_latents(sigma, x))


def velocity_from_score(
    x: Float[Tensor, "B *L"], score: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """The velocity of a path whose log density has this gradient, for σ < 1."""
    return velocity_from_noise(x, -over_latents(sigma, x) * score, sigma)
