"""The clipped ratio with -E for the log-likelihood: AWM (arXiv:2509.25050; scxue/advantage_weighted_matching)
and V-GRPO (arXiv:2604.23380).

    L = max(-A ρ, -A clip(ρ, 1-c, 1+c)),      ρ = exp(E_old - E)

One ratio a noise level (AWM's "exp_first"), or one a sample from the mean of its levels (V-GRPO, AWM's
"sum_first"). Shapes: B rows, ... latent axes.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.ratio import clipped
from thalweg.objectives.rules.contract import Error, Terms
from thalweg.objectives.segments import mean_over, segments


class Ratio(Part):
    """One term a row, or one a sample."""

    kind: Literal["ratio"] = "ratio"
    clip_range: PositiveFloat = 1e-2
    """c: the ratio is held in [1-c, 1+c]."""
    spans: Literal["level", "sample"] = "level"
    """What has a ratio of its own."""
    old: str | None = "old"
    """Named weights that collected the samples; None takes those of today, so that the ratio is 1."""

    @property
    def unit(self) -> Unit:
        return "row" if self.spans == "level" else "sample"

    @property
    def compared(self) -> tuple[str, ...]:
        return () if self.old is None else (self.old,)

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        now = error(velocity)
        return {"error": now, "old_error": now.detach() if self.old is None else error(anchors[self.old])}

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        log_ratio = scalars["old_error"].detach() - scalars["error"]
        if self.spans == "sample":
            log_ratio = mean_over(log_ratio, rows.weight, segments(rows.sample))
        terms, clip_fraction = clipped(log_ratio, advantage[:, None], self.clip_range)
        return terms, {"log_ratio": log_ratio.detach(), "clip_fraction": clip_fraction}
