"""Brings a number per sample to the latents' dtype, device and rank, so that it multiplies them.

Shapes: B samples, ... latent axes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

PerSample = float | Float[Tensor, ""] | Float[Tensor, " B"]
"""One number for the whole batch, or one for each sample."""


def working_dtype(x: Float[Tensor, "B ..."]) -> torch.dtype:
    """Float32, or float64 for float64 latents: half precision would round a policy ratio to 1."""
    return torch.promote_types(x.dtype, torch.float32)


def per_sample(value: PerSample, x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """The value of each sample, on the device of `x` and in its working dtype."""
    if isinstance(value, Tensor):
        return value.to(x.device, working_dtype(x)).expand(len(x))
    # Filling needs no copy from the host, which would wait for the GPU.
    return torch.full((len(x),), value, dtype=working_dtype(x), device=x.device)


def over_latents(value: PerSample, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """The value of each sample with an axis of length 1 for every latent axis of `x`."""
    return per_sample(value, x).reshape(-1, *[1] * (x.ndim - 1))
