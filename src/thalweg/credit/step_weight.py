"""How much each trained step counts, besides its advantage. Shapes: B rows.

The gradient of a log-prob at theta_old is J z / s: with s = std and J the sensitivity of the mean to the
velocity (`flow.gaussian`), a weight decides how steps of different noise balance.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.processes import Processes
from thalweg.core.values import Transitions
from thalweg.credit.normalized import across

StepWeight = Literal["uniform", "noise", "rectified", "step_size"]


def step_weights(kind: StepWeight, rows: Transitions, processes: Processes) -> Float[Tensor, " B"]:
    """`uniform`: 1. `noise`: s over its mean across trained steps, so that the gradient goes with J
    (TempFlow-GRPO, arXiv:2508.04324; our reading: the mean is over trained steps). `rectified`: s/J over its
    mean across the rows of all processes, so that every step's gradient is as large (Flash-GRPO,
    arXiv:2605.15980). `step_size`: 1/Δ over its mean across trained steps (GRPO-Guard, arXiv:2510.22319).
    """
    if kind == "uniform":
        return torch.ones_like(rows.std)
    delta = rows.sigma - rows.sigma_next
    J = delta + (rows.sigma_next - rows.k) * (1 - rows.sigma)
    raw = {"noise": rows.std, "rectified": rows.std / J, "step_size": 1 / delta}[kind]
    everyone, mine = across(processes, {"raw": raw, "step": rows.step})
    if len(everyone["raw"]) == 0:
        return raw
    if kind == "rectified":
        return raw / everyone["raw"].mean()
    steps, which = torch.unique(everyone["step"], return_inverse=True)
    each = torch.zeros(len(steps), dtype=raw.dtype).scatter(0, which, everyone["raw"])
    return everyone["raw"][mine] / each.mean()
