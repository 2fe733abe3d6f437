"""How much each trained step counts, besides its advantage. Shapes: B rows."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

StepWeight = Literal["uniform", "noise"]


def step_weights(
    kind: StepWeight, std: Float[Tensor, " B"], step: Int64[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """`uniform`: 1. `noise`: s_j over its mean across the trained steps (TempFlow-GRPO, arXiv:2508.04324).

    The latter turns a gradient proportional to J/s into one proportional to J. Our reading: the mean is over
    trained steps.
    """
    if kind == "uniform" or len(std) == 0:
        return torch.ones_like(std)
    steps, which = torch.unique(step, return_inverse=True)
    each = torch.zeros(len(steps), dtype=std.dtype).scatter(0, which, std)
    return std / each.mean()
