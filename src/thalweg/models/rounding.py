"""Values as a low-precision format would hold them, in the dtype they came in. Shapes: any."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Format = Literal["fp4", "int8"]
"""Four bits, E2M1 as in NVFP4; or whole numbers from -127 to 127."""
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
"""Sizes that E2M1 holds."""


def rounded(values: Float[Tensor, "..."], format: Format, block_size: int) -> Float[Tensor, "..."]:
    """The nearest value that the format holds; each block of neighbours has a scale, kept in full
    precision.
    """
    flat = values.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    largest = blocks.abs().amax(1, keepdim=True)
    if format == "int8":
        scale = (largest / 127).clamp(min=torch.finfo(values.dtype).tiny)
        near = (blocks / scale).round() * scale
    else:
        scale = (largest / FP4[-1]).clamp(min=torch.finfo(values.dtype).tiny)
        size = (blocks / scale).abs()
        held = FP4.to(values)
        near = held[(size[..., None] - held).abs().argmin(-1)] * blocks.sign() * scale
    return near.flatten()[: len(flat)].view_as(values)
