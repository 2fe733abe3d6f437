"""Variance-preserving models (DDPM, Stable Diffusion 1.5) in the coordinates of a flow.

    x̄ = α x0 + s ε,  α = √ᾱ,  s = √(1-ᾱ)        becomes        x = x̄ / (α+s) = (1-σ) x0 + σ ε,  σ = s / (α+s)

So the forward process is `LinearPath` and needs no path of its own; with n(σ) = √((1-σ)² + σ²) = 1 / (α+s),

    x̄ = x / n,      ᾱ = (1-σ)² / n²

Such a network is fed x̄, and what it returns becomes our velocity v = ε - x0: a noise prediction through
`velocity_from_noise` (σ < 1), a v-prediction v̄ = α ε - s x0 (Salimans and Ho 2022, arXiv:2202.00512) by

    v = v̄ / n + (2σ-1) x / n²

Shapes: B samples, *L latent axes. Results are float32, or float64 for float64 latents.
"""

from jaxtyping import Float
from torch import Tensor

from thalweg.flow.broadcast import PerSample, over_latents


def flow_norm(sigma: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """n(σ), between √½ and 1."""
    return ((1 - sigma) ** 2 + sigma**2).sqrt()


def sigma_from_alpha_bar(alpha_bar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """σ of the noise level at which the signal has variance ᾱ."""
    alpha, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return s / (alpha + s)


def alpha_bar_from_sigma(sigma: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """ᾱ, which falls from 1 at the data to 0 at the noise."""
    return ((1 - sigma) / flow_norm(sigma)) ** 2


def to_variance_preserving(x: Float[Tensor, "B *L"], sigma: PerSample) -> Float[Tensor, "B *L"]:
    """x̄, what a variance-preserving network is fed."""
    return x / flow_norm(over_latents(sigma, x))


def from_variance_preserving(x_vp: Float[Tensor, "B *L"], sigma: PerSample) -> Float[Tensor, "B *L"]:
    """x, the flow's state."""
    return x_vp * flow_norm(over_latents(sigma, x_vp))


def velocity_from_v_prediction(
    x: Float[Tensor, "B *L"], v_prediction: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """The flow's velocity, finite at every σ; x is the flow's state."""
    level = over_latents(sigma, x)
    norm = flow_norm(level)
    return v_prediction / norm + (2 * level - 1) * x / norm**2


def v_prediction_from_velocity(
    x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample
) -> Float[Tensor, "B *L"]:
    """v̄ = α ε - s x0 of the same prediction."""
    level = over_latents(sigma, x)
    norm = flow_norm(level)
    return norm * velocity - (2 * level - 1) * x / norm
