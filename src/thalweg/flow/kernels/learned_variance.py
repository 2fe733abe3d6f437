"""DDPM with a learned variance (Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 15), in a flow's coordinates.

    k = σ' (1-q),      log s² = ν log β + (1-ν) log β̃,      q = (σ-σ') / (σ (1-σ'))

ν is the network's second output, one number a latent element; 0 and 1 are DDPM's bounds of the variance, the
posterior's if the data were a point and the one if they were N(0, I), scaled as
`flow/variance_preserving.py` says:

    β̃ = σ'² q (2-q),      β = σ² q (2-q) (n'/n)²,      n² = (1-σ)² + σ²

The mean is the posterior's for every ν, so ν = 0 is `DPMSolverSDE`. Finite at σ = 1. At σ' = 0, where β̃ = 0,
the step is taken without noise. A noise factor multiplies s alone. Gradients reach ν through `std`.
Shapes: B samples, ... latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.flow.broadcast import PerSample, over_latents, per_sample
from thalweg.flow.gaussian import Prediction, Transition
from thalweg.flow.variance_preserving import flow_norm


class LearnedVariance(Part):
    """The network says how sure it is of every latent element."""

    kind: Literal["learned_variance"] = "learned_variance"

    def transition(
        self,
        x: Float[Tensor, "B ..."],
        prediction: Float[Tensor, "B ..."] | Prediction,
        sigma: PerSample,
        sigma_next: PerSample,
        noise_factor: PerSample = 1.0,
    ) -> Transition:
        """p(x' | x) where the network predicts this velocity and variance."""
        if isinstance(prediction, Tensor):
            raise UserError(
                "rollout.kernel: 'learned_variance' reads a second output of the network, and this model "
                "predicts the velocity alone; choose dpm_sde, which has the same mean"
            )
        sigma, sigma_next = per_sample(sigma, x), per_sample(sigma_next, x)
        q = ((sigma - sigma_next) / (sigma * (1 - sigma_next))).clamp(max=1)
        smaller = sigma_next**2 * q * (2 - q)
        larger = sigma**2 * q * (2 - q) * (flow_norm(sigma_next) / flow_norm(sigma)) ** 2
        tiny = torch.finfo(smaller.dtype).tiny  # log 0 would make the gradient NaN
        low, high = (over_latents(bound.clamp(min=tiny).log(), x) for bound in (smaller, larger))
        log_std = (low + prediction.variance_fraction * (high - low)) / 2
        factor = torch.where(smaller > 0, per_sample(noise_factor, x), 0)
        std = over_latents(factor, x) * log_std.exp()
        return Transition(x, prediction.velocity, sigma, sigma_next, sigma_next * (1 - q), std)
