"""Softmax trajectory balance: TMPO (arXiv:2605.10983; MAIR-Lab-HUST/TMPO) and Uni-TMPO.

    s_i = Σ log p(x' | x) over the trained steps of path i,   p = softmax(c s),   q = softmax(b A) in a group
        or Σ -<(x' - μ)²>, which the authors take with CPS                  `score: published`

    kl       KL(q || p) = Σ q_i (log q_i - log p_i)                 Uni-TMPO; gradient Σ (p_i - q_i) c ∇s_i
    squares  Σ (log p_i - log q_i)²                                 TMPO, the paper
    ratio    w max(-A'ρ, -A' clip(ρ, 1-r, 1+r)),  A' = log q - log p,       TMPO, the authors' code
             ρ = exp(d_i - mean d),  d = c (s - s_old),  A' and the mean without gradient
             w = clip(exp(mean over steps of <δ z>), 1-r, 1+r)      their RatioNorm; 1 without `ratio_norm`

The group's samples shall be drawn in proportion to exp(b A), so modes of equal reward stay.
Log-probabilities are means over latent elements, which leaves p nearly uniform; c restores the scale. The
published score is 2 std² times the log-probability, up to a constant: steps of much noise count for more.
δ is how far a step's mean has moved since the rollout and z its drawn noise: <δ z> is the log-ratio without
its bias -<δ²>/(2 std²), times std. A pull λ (s/S - s_ref/S)² over S steps may hold each path to a reference.
Shapes: B rows, n paths, ... latent axes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Transitions
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.path_rows import transitions
from thalweg.objectives.ratio import clipped, drift_scalars, transition_of
from thalweg.objectives.segments import log_softmax_over, mean_over, segments, sum_over

Form = Literal["kl", "squares", "ratio"]
Score = Literal["log_prob", "published"]

SCORES: Mapping[Score, Callable[[Tensor, Tensor], Tensor]] = {
    "log_prob": lambda log_prob, std: log_prob,
    "published": lambda log_prob, std: std.square() * (2 * log_prob + (2 * math.pi * std.square()).log()),
}
"""What a step adds to the score of its path, from its log-probability and standard deviation."""

Paths = tuple[Float[Tensor, " n"], dict[str, Float[Tensor, " n"]]]


def _kl(log_p: Tensor, log_q: Tensor, moved: Tensor, group: Tensor, clip_range: float) -> Paths:
    return sum_over(log_q.exp() * (log_q - log_p), group), {}


def _squares(log_p: Tensor, log_q: Tensor, moved: Tensor, group: Tensor, clip_range: float) -> Paths:
    return sum_over((log_p - log_q).pow(2), group), {}


def _ratio(log_p: Tensor, log_q: Tensor, moved: Tensor, group: Tensor, clip_range: float) -> Paths:
    wanted = (log_q - log_p).detach()
    log_ratio = moved - mean_over(moved.detach(), torch.ones_like(moved), group)
    terms, clip_fraction = clipped(log_ratio, wanted[:, None], clip_range)
    return terms, {"clip_fraction": clip_fraction}


FORMS: Mapping[Form, Callable[[Tensor, Tensor, Tensor, Tensor, float], Paths]] = {
    "kl": _kl,
    "squares": _squares,
    "ratio": _ratio,
}


class Balance(Part):
    """One term a group, or with `ratio` one a path, which stands in each of its rows."""

    kind: Literal["balance"] = "balance"
    form: Form = "kl"
    """How p is brought to q."""
    score: Score = "log_prob"
    """s of a step: its log-probability, or without 1 / (2 std²) and constants as published."""
    reward_scale: PositiveFloat = 1.0
    """b: how much more often a better sample shall be drawn; acts on the advantage."""
    score_scale: PositiveFloat = 1.0
    """c; the number of latent elements makes the score a log-probability of the whole path."""
    clip_range: PositiveFloat = 0.2
    """r of `ratio`; the other forms have none."""
    ratio_norm: bool = False
    """Weigh the paths of `ratio` by w; the rollout keeps its means for it."""
    reference_weight: float = Field(default=0.0, ge=0)
    """λ; 0 spares the passes of the reference (the authors: 0.1 on SD3.5, 0 on FLUX)."""
    reference: str = "reference"
    """Named weights of the pull."""

    @model_validator(mode="after")
    def _clipped(self) -> "Balance":
        if self.ratio_norm and self.form != "ratio":
            raise ValueError(
                f"ratio_norm weighs clipped ratios, and form='{self.form}' has none; use form=ratio"
            )
        return self

    @property
    def unit(self) -> Unit:
        return "group"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.reference,) if self.reference_weight > 0 else ()

    @property
    def keeps_mean(self) -> bool:
        """Whether the rollout must keep the means of trained steps."""
        return self.ratio_norm

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Transitions:
        return transitions(forest, advantages)

    def inputs(self, rows: Transitions) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return rows.x, rows.sigma

    def measure(
        self,
        rows: Transitions,
        x: Float[Tensor, "B ..."],
        velocity: Float[Tensor, "B ..."],
        anchors: Mapping[str, Float[Tensor, "B ..."]],
    ) -> Scalars:
        now = transition_of(rows, velocity)
        scalars = {"log_prob": now.log_prob(rows.x_next)}
        if self.ratio_norm:
            scalars["along_noise"] = drift_scalars(rows, now)["along_noise"]
        if self.reference_weight > 0:
            there = transition_of(rows, anchors[self.reference])
            scalars["reference_log_prob"] = there.log_prob(rows.x_next)
        return scalars

    def loss(
        self, scalars: Scalars, rows: Transitions
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        now = scalars["log_prob"]
        samples, path = torch.unique(rows.sample, return_inverse=True)
        first = torch.zeros(len(samples), dtype=torch.int64).scatter(0, path, torch.arange(len(path)))
        group, given = segments(rows.prompt_slot[first]), rows.advantages.sum(1)[first].to(now.dtype)

        def over_paths(of_steps: Tensor) -> Tensor:
            empty = torch.zeros(len(samples), dtype=now.dtype)
            return self.score_scale * empty.index_add(0, path, of_steps * rows.weight)

        def scored(log_prob: Tensor) -> Tensor:
            return SCORES[self.score](log_prob, rows.std.to(log_prob))

        log_p = log_softmax_over(over_paths(scored(now)), group)
        log_q = log_softmax_over(self.reward_scale * given, group)
        moved = over_paths(scored(now) - scored(rows.old_log_prob.to(now)))
        terms, report = FORMS[self.form](log_p, log_q, moved, group, self.clip_range)
        steps = torch.zeros(len(samples), dtype=now.dtype).index_add(0, path, rows.weight.to(now.dtype))
        steps = torch.where(steps == 0, 1, steps) * self.score_scale
        if self.ratio_norm:
            along = (over_paths(scalars["along_noise"].detach()) / steps).exp()
            terms = terms * along.clamp(1 - self.clip_range, 1 + self.clip_range)
        # Equal rewards say nothing about the shares: such a group is left as it is.
        terms = terms * (sum_over(given.abs(), group) > 0)
        if self.reference_weight > 0:
            gap = over_paths(scored(now) - scored(scalars["reference_log_prob"].detach())) / steps
            terms = terms + self.reference_weight * gap.square()
            report["reference_gap"] = gap.detach()
        report = {name: u[path] for name, u in report.items()}
        report["log_ratio"] = (now - rows.old_log_prob).detach()
        return terms[path] * rows.weight, report
