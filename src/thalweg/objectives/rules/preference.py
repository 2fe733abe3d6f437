"""Preference inside a group, of pairs (Diffusion-DPO, Wallace et al. 2023, arXiv:2311.12908) or of all
samples (DGPO, arXiv:2510.08425; Luo-Yihong/DGPO).

    S = beta mean over the group of A (E - E_ref),      L = -log sigmoid(-S) = softplus(S)

A = ±1 for the best and the worst sample of a group and 0 for the others is DPO, -log sigmoid(-beta/2 [(E -
E_ref)_best - (E - E_ref)_worst]). With all samples and advantages that add up to 0 it is group DPO, whose
partition functions cancel. S is formed at each noise level by itself. The authors of DGPO leave the factor
beta out of the gradient: `divide_by_beta`. Their stop takes the gradient of samples away whose ratio
exp(E_stop - E) has left [1-c, 1+c] on the side that A asks for. A real anchor w E_best besides keeps the
likelihood of the better sample itself from falling (RealAlign, arXiv:2605.19839). Shapes: B rows, ... latent
axes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor
from torch.nn.functional import softplus

from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.rules.contract import Error, Terms
from thalweg.objectives.segments import best_and_worst, mean_over, segments


class Preference(Part):
    """One term a group and noise level, which stands in each of its rows."""

    kind: Literal["preference"] = "preference"
    among: Literal["pair", "group"] = "pair"
    """The best against the worst sample, or all samples by their advantages."""
    beta: PositiveFloat = 100.0
    """How soon a preference counts as learnt; goes with errors that are means over latent elements."""
    divide_by_beta: bool = False
    """Leave the slope of the first step as it is for every beta."""
    reference: str = "reference"
    """Named weights that the preference is measured from."""
    imitation_weight: float = Field(default=0.0, ge=0)
    """w: plain regression on the best sample of a pair."""
    stop_range: PositiveFloat | None = None
    """c; None stops nothing."""
    stop: str = "ema"
    """Named weights that the ratio of the stop is taken to."""

    @model_validator(mode="after")
    def _stoppable(self) -> "Preference":
        if self.among == "pair" and self.stop_range is not None:
            raise ValueError("stop_range acts on groups alone; use among=group, or leave it out")
        if self.among == "group" and self.imitation_weight > 0:
            raise ValueError("imitation_weight acts on pairs alone; use among=pair, or leave it out")
        return self

    @property
    def unit(self) -> Unit:
        return self.among

    @property
    def compared(self) -> tuple[str, ...]:
        return (self.reference,) if self.stop_range is None else (self.reference, self.stop)

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        scalars = {"error": error(velocity), "reference_error": error(anchors[self.reference])}
        if self.stop_range is not None:
            scalars["stop_error"] = error(anchors[self.stop])
        return scalars

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        error, report = scalars["error"], dict[str, Tensor]()
        member = torch.ones_like(error)
        if self.among == "pair":
            advantage = best_and_worst(advantage, rows.sample, rows.prompt_slot).to(error.dtype)
            member = advantage.abs()
        if self.stop_range is not None:
            ratio = (scalars["stop_error"] - error).detach().exp()
            too_good = (advantage > 0) & (ratio > 1 + self.stop_range)
            too_bad = (advantage <= 0) & (ratio < 1 - self.stop_range)
            error = torch.where(too_good | too_bad, error.detach(), error)
            report["clip_fraction"] = (too_good | too_bad).to(error.dtype)
        change = error - scalars["reference_error"].detach()
        level = segments(rows.prompt_slot, rows.step)
        weight = rows.weight * member
        margin = mean_over(advantage * change, weight, level)
        terms = softplus(self.beta * margin) * member
        report["preference_accuracy"] = (margin.detach() < 0).to(error.dtype)
        for name, of in {"better": advantage > 0, "worse": advantage < 0}.items():
            report[f"error_change/{name}"] = mean_over(change.detach(), rows.weight * of, level)
        terms = terms / self.beta if self.divide_by_beta else terms
        return terms + self.imitation_weight * (advantage > 0) * error, report
