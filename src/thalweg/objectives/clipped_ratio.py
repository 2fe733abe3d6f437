"""The clipped policy ratio of one denoising step, Flow-GRPO's objective (Liu et al. 2025, arXiv:2505.05470,
Eq. 5).

    L = max(-A rho, -A clip(rho, 1-c, 1+c)) + beta KL,      rho = exp(log p_theta(x'|x) - log p_old(x'|x))

Differs from the paper: log-probabilities average over latent elements, as the authors' code does, so rho is
the true ratio to the power 1/d and c is tiny. Other ratios and trust regions are named options
(`objectives.ratio`). Shapes: B rows, R rewards, ... latent axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Transitions
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.correction import Correction
from thalweg.objectives.path_rows import on_best_way, transitions
from thalweg.objectives.ratio import (
    KL,
    LOG_RATIO,
    KLKind,
    RatioKind,
    clipped,
    drift_scalars,
    hinged,
    masked,
    transition_of,
)


class ClippedRatio(Part):
    """One loss term a trained step."""

    kind: Literal["clipped_ratio"] = "clipped_ratio"
    clip_range: float = Field(default=1e-4, gt=0)
    """c: the ratio is held in [1-c, 1+c]. Tiny, because log-probs are averaged over latents."""
    clip_nats: float | None = Field(default=None, gt=0)
    """c in nats of the log-ratio summed over latents, in place of `clip_range`: the same at any
    resolution.
    """
    clip_range_max: float | None = Field(default=None, gt=0)
    """The side to which an advantage pulls is held by more, clip_range + (clip_range_max - clip_range)
    sigmoid(clip_sensitivity A), the other by less (our reading of Dynamic-TreeRPO, arXiv:2509.23352).
    """
    clip_sensitivity: float = Field(default=1.0, gt=0)
    ratio: RatioKind = "step"
    """Which ratio of the step."""
    trust: Literal["clip", "divergence", "hinge"] = "clip"
    """Hold the ratio; leave out terms that lead away once the step's divergence has reached its range
    (Flow-DPPO); or follow the log-ratio in a straight line until its s² fold has reached c (reward score
    matching of order zero).
    """
    divergence_range: float = Field(default=1e-5, gt=0)
    """tau of `trust: divergence`, an average over latent elements."""
    kl_weight: float = Field(default=0.0, ge=0)
    """beta; 0 spares the passes of the reference."""
    kl: KLKind = "exact"
    """How far from the reference: of the step, as published, or in velocity."""
    reference: str = "reference"
    """Named weights the KL is taken to."""
    imitation_weight: float = Field(default=0.0, ge=0)
    """lambda of (v - v_old)^2 on the way to the best sample of each tree (Dynamic-TreeRPO). Its gradient is 0
    until the first update: a pull towards what the best way was drawn with.
    """
    old_log_prob: Literal["stored", "recompute"] = "stored"
    """Compare with the rollout's log-prob, or with one recomputed on the training path before the first
    update.
    """
    correction: Correction | None = None
    """With recomputed log-probs: weigh and reject samples by how far the rollout's were from them."""

    @property
    def unit(self) -> Unit:
        return "row"

    @model_validator(mode="after")
    def _consistent(self) -> "ClippedRatio":
        if self.correction is not None and self.old_log_prob == "stored":
            raise ValueError(
                "correction compares the rollout's log-probs with recomputed ones; set "
                "old_log_prob=recompute, or leave correction out"
            )
        if self.clip_range_max is not None and self.clip_range_max < self.clip_range:
            raise ValueError(
                f"clip_range_max={self.clip_range_max:g} is less than clip_range={self.clip_range:g}; "
                "give more"
            )
        if self.trust == "hinge" and (self.ratio != "step" or self.clip_range_max is not None):
            raise ValueError(
                "trust='hinge' acts on the plain log-ratio alone; use ratio=step, without clip_range_max"
            )
        if self.clip_nats is not None and ("clip_range" in self.model_fields_set or self.clip_range_max):
            raise ValueError("clip_nats stands in place of clip_range and clip_range_max; give one of them")
        return self

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.reference,) if self.kl_weight > 0 else ()

    @property
    def keeps_mean(self) -> bool:
        """Whether the rollout must keep the means of trained steps."""
        return self.ratio == "guard" or self.trust == "divergence" or self.imitation_weight > 0

    def clip_of(self, num_elements: int) -> float:
        """c for latents of d elements."""
        return self.clip_range if self.clip_nats is None else self.clip_nats / num_elements

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Transitions:
        rows = transitions(forest, advantages)
        if self.imitation_weight == 0:
            return rows
        return replace(rows, on_best_way=on_best_way(forest, advantages))

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
        if self.keeps_mean:
            scalars |= drift_scalars(rows, now)
        if self.kl_weight > 0:
            scalars["kl"] = KL[self.kl](rows, now, transition_of(rows, anchors[self.reference]))
        return scalars

    def loss(
        self, scalars: Scalars, rows: Transitions
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        log_ratio = LOG_RATIO[self.ratio](scalars, rows)
        if self.trust == "divergence":
            terms, held = masked(
                log_ratio, rows.advantages, scalars["divergence"].detach(), self.divergence_range
            )
        elif self.trust == "hinge":
            terms, held = hinged(log_ratio, rows.advantages, rows, self.clip_of(rows.x[0].numel()))
        else:
            terms, held = clipped(log_ratio, rows.advantages, *self._bounds(rows))
        report = {"clip_fraction": held, "log_ratio": log_ratio.detach()}
        if "kl" in scalars:
            terms = terms + self.kl_weight * scalars["kl"]
            report["kl"] = scalars["kl"].detach()
        if "divergence" in scalars:
            report["divergence"] = scalars["divergence"].detach()
        if rows.on_best_way is not None:
            terms = terms + self.imitation_weight * torch.where(rows.on_best_way, scalars["velocity_gap"], 0)
        return terms * rows.weight, report

    def _bounds(self, rows: Transitions) -> tuple[float | Tensor, float | Tensor]:
        """c below and above a ratio of 1."""
        least = self.clip_of(rows.x[0].numel())
        if self.clip_range_max is None:
            return least, least
        pull = torch.sigmoid(self.clip_sensitivity * rows.advantages)
        room = self.clip_range_max - least
        return least + room * (1 - pull), least + room * pull
