"""Advantage-weighted errors, and the policy gradients whose log-likelihood is -E (Choi et al. 2026,
arXiv:2602.04663; jaemoo-choi/rethinking-diffusion-rl).

    L = q (A - c d) E,      d = sg[E_old - E],  q = exp(d)

c = 0 is EPG, c = 1 PEPG, whose gradient is also that of PAR (`residual`). Without `old`, q = 1 and d = 0:
weighted regression, to be held back by pulls (AdvantageFlow, arXiv:2605.26013). Shapes: B rows, ... latent
axes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.rules.contract import Error, Terms


class Weighted(Part):
    """One term a row."""

    kind: Literal["weighted"] = "weighted"
    old: str | None = None
    """Named weights that collected the samples; None takes those of today, so that d = 0."""
    use_ratio: bool = True
    """False leaves q at 1 (the authors' "noratio")."""
    log_ratio_weight: float = Field(default=0.0, ge=0)
    """c: the step stops where the log-ratio is A / c."""

    @model_validator(mode="after")
    def _comparable(self) -> "Weighted":
        if self.old is None and self.log_ratio_weight > 0:
            raise ValueError(
                f"log_ratio_weight={self.log_ratio_weight} compares with old weights; name them in `old`"
            )
        return self

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def compared(self) -> tuple[str, ...]:
        return () if self.old is None else (self.old,)

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        scalars = {"error": error(velocity)}
        if self.old is not None:
            scalars["old_error"] = error(anchors[self.old])
        return scalars

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        error = scalars["error"]
        if self.old is None:
            return advantage * error, {}
        log_ratio = (scalars["old_error"] - error).detach()
        ratio = log_ratio.exp() if self.use_ratio else torch.ones_like(log_ratio)
        terms = ratio * (advantage - self.log_ratio_weight * log_ratio) * error
        return terms, {"log_ratio": log_ratio}
