"""PAR, the policy gradient written as a regression (Choi et al. 2026, arXiv:2602.04663;
jaemoo-choi/rethinking-diffusion-rl).

    L = q/2 (A - [E_old - E])²,      q = exp(E_old - E) without gradient

Its gradient is that of `weighted` with log_ratio_weight = 1 (PEPG); its value says how far the log-ratio is
from the advantage, and is 0 at the tilted optimum. Shapes: B rows, ... latent axes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.rules.contract import Error, Terms


class Residual(Part):
    """One term a row."""

    kind: Literal["residual"] = "residual"
    old: str = "old"
    """Named weights that collected the samples."""
    use_ratio: bool = True
    """False leaves q at 1 (the authors' "noratio")."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def compared(self) -> tuple[str, ...]:
        return (self.old,)

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        return {"error": error(velocity), "old_error": error(anchors[self.old])}

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        log_ratio = scalars["old_error"].detach() - scalars["error"]
        ratio = log_ratio.detach().exp() if self.use_ratio else torch.ones_like(log_ratio)
        return ratio / 2 * (advantage - log_ratio).square(), {"log_ratio": log_ratio.detach()}
