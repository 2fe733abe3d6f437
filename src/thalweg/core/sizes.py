"""Samples of several sizes in one forest: latents of different shapes as flat rows of one length.

Rows shorter than the longest are filled up with zeros for storage alone. Everything that is worked out
(network passes, kernels, log-probs, losses, decoding) sees rows of one size in their own shape, which
`values.with_latents_of` cuts out. Memory is that of the longest row.

Shapes: B rows, E elements of the longest.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def stacked(parts: Sequence[Float[Tensor, "_ ..."]], num_elements: int = 0) -> Float[Tensor, "B E"]:
    """Rows of several shapes under each other, flat, at least `num_elements` long."""
    flat = [part.flatten(1) for part in parts]
    longest = max(num_elements, *(part.shape[1] for part in flat))
    return torch.cat([pad(part, (0, longest - part.shape[1])) for part in flat])


def cut_out(latents: Float[Tensor, "B ..."], shape: tuple[int, ...]) -> Float[Tensor, "B ..."]:
    """Latents of one size in their own shape."""
    if tuple(latents.shape[1:]) == shape:
        return latents
    return latents.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)
