"""Rollout correction: the rollout and the training path disagree about the same step
(verl-project/verl-omni).

b is the log-prob as the rollout saw it, o the one recomputed on the training path before the first update.
The
ratio of the update compares with o; each sample or step is weighed by w = min(exp(o - b), limit), and samples
that are too far apart are rejected. Both act on the advantage, so the loss is an average over all rows and
rejected ones dilute it. Shapes: B rows.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Transitions


class Correction(Part):
    """How rows are weighed and which are rejected; detached from the gradient."""

    weigh: Literal["sample", "step", "none"] = "sample"
    """One weight for all steps of a sample, one for each step, or none."""
    reduce: Literal["sum", "mean"] = "sum"
    """Over the steps of a sample."""
    limit: float = Field(default=2.0, ge=1)
    """Largest weight."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Least weight; OP-GRPO holds weights in [1/limit, limit] (our reading)."""
    num_elements: PositiveFloat = 1.0
    """Multiplies log-probs, which are means over latent elements: at their number a difference is in nats of
    the true density, whose weights are useless beyond a few dimensions.
    """
    accept: tuple[float, float] | None = None
    """Keep a sample whose exp(mean over steps of (o - b)) lies between the two; None keeps all."""

    def apply(self, rows: Transitions) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """(weight, whether it is kept) of each row, from its `old_log_prob` and `behaviour_log_prob`."""
        gap = (rows.old_log_prob - rows.behaviour_log_prob).double() * self.num_elements
        samples, which = torch.unique(rows.sample, return_inverse=True)
        total = torch.zeros(len(samples), dtype=gap.dtype).index_add(0, which, gap)
        mean = total / torch.bincount(which, minlength=len(samples))
        exponent = {"step": gap, "sample": (total if self.reduce == "sum" else mean)[which]}
        weight = exponent.get(self.weigh, torch.zeros_like(gap)).exp().clamp(self.floor, self.limit)
        keep = torch.ones(len(gap), dtype=torch.bool)
        if self.accept is not None:
            low, high = self.accept
            keep = ((mean.exp() >= low) & (mean.exp() <= high))[which]
        return weight.to(rows.advantages.dtype), keep
