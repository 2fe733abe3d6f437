"""Implicit positive and negative policies: DiffusionNFT (Zheng et al. 2025, arXiv:2509.16117;
NVlabs/DiffusionNFT).

    v+ = beta v + (1-beta) v_old,      v- = (1+beta) v_old - beta v
    L = M / beta [ r E(v+) + (1-r) E(v-) ],      r = clip(A, -M, M) / (2M) + 1/2

beta changes the second order only: with uniform weights it is A |v_θ - v|² + (beta - A) |v_θ - v_old|², a
trust region of total curvature beta, up to a constant. Shapes: B rows, ... latent axes.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.objectives.advantage_map import optimality
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.rules.contract import Error, Terms


class Implicit(Part):
    """One term a row."""

    kind: Literal["implicit"] = "implicit"
    beta: PositiveFloat = 1.0
    """How far v+ and v- reach beyond the old policy; smaller moves further, and saturates later."""
    advantage_max: PositiveFloat = 5.0
    """M: the advantage at which r reaches 0 or 1."""
    old: str = "old"
    """Named weights that v+ and v- are built around."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def compared(self) -> tuple[str, ...]:
        return (self.old,)

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        old = anchors[self.old]
        moved = self.beta * (velocity - old)
        return {"positive": error(old + moved), "negative": error(old - moved)}

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        share = optimality(advantage, self.advantage_max)
        terms = share * scalars["positive"] + (1 - share) * scalars["negative"]
        return self.advantage_max / self.beta * terms, {}
