"""Softmax trajectory balance: TMPO (arXiv:2605.10983; MAIR-Lab-HUST/TMPO) and Uni-TMPO.

    s_i = Σ log p(x' | x) over the trained steps of path i,      p = softmax(c s),   q = softmax(b A),  in
    the group kl       KL(q || p) = Σ q_i (log q_i - log p_i)                       Uni-TMPO; gradient Σ
    (p_i - q_i) c ∇s_i squares  Σ (log p_i - log q_i)²                                       TMPO, the paper
    ratio    max(-A'ρ, -A' clip(ρ, 1-r, 1+r)),  A' = log q - log p,       TMPO, the authors' code
             ρ = exp(d_i - mean d),  d = c (s - s_old),  A' and the mean without gradient

The group's samples shall be drawn in proportion to exp(b A), so modes of equal reward stay.
Log-probabilities are means over latent elements, which leaves p nearly uniform; c restores the scale.
Differs from the code: no RatioNorm weight, and no term to a reference. Shapes: B rows, n paths.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Transitions
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.path_rows import transitions
from thalweg.objectives.ratio import clipped, transition_of
from thalweg.objectives.segments import log_softmax_over, mean_over, segments, sum_over

Form = Literal["kl", "squares", "ratio"]


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
    reward_scale: PositiveFloat = 1.0
    """b: how much more often a better sample shall be drawn; acts on the advantage."""
    score_scale: PositiveFloat = 1.0
    """c; the number of latent elements makes the score a log-probability of the whole path."""
    clip_range: PositiveFloat = 0.2
    """r of `ratio`; the other forms have none."""

    @property
    def unit(self) -> Unit:
        return "group"

    @property
    def anchors(self) -> tuple[str, ...]:
        return ()

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
        return {"log_prob": transition_of(rows, velocity).log_prob(rows.x_next)}

    def loss(
        self, scalars: Scalars, rows: Transitions
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        now = scalars["log_prob"]
        samples, path = torch.unique(rows.sample, return_inverse=True)
        first = torch.zeros(len(samples), dtype=torch.int64).scatter(0, path, torch.arange(len(path)))
        group, given = segments(rows.prompt_slot[first]), rows.advantages.sum(1)[first].to(now.dtype)

        def score(log_prob: Tensor) -> Tensor:
            empty = torch.zeros(len(samples), dtype=now.dtype)
            return self.score_scale * empty.index_add(0, path, log_prob * rows.weight)

        log_p = log_softmax_over(score(now), group)
        log_q = log_softmax_over(self.reward_scale * given, group)
        moved = score(now - rows.old_log_prob)
        terms, report = FORMS[self.form](log_p, log_q, moved, group, self.clip_range)
        # Equal rewards say nothing about the shares: such a group is left as it is.
        counted = sum_over(given.abs(), group) > 0
        report = {name: u[path] for name, u in report.items()}
        report["log_ratio"] = (now - rows.old_log_prob).detach()
        return (terms * counted)[path] * rows.weight, report
