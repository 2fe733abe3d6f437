"""The clipped policy ratio of one denoising step, Flow-GRPO's objective (Liu et al. 2025, arXiv:2505.05470,
Eq. 5).

    L = max(-A rho, -A clip(rho, 1-c, 1+c)) + beta KL,      rho = exp(log p_theta(x'|x) - log p_old(x'|x))

Differs from the paper: log-probabilities average over latent elements, as the authors' code does, so rho is
the true ratio to the power 1/d and c is tiny. Shapes: B rows, R rewards, ... latent axes.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.forest import Forest
from thalweg.core.part import Part
from thalweg.core.values import Transitions
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.path_rows import transitions
from thalweg.objectives.ratio import KL, KLKind, clipped, transition_of


class ClippedRatio(Part):
    """One loss term a trained step."""

    kind: Literal["clipped_ratio"] = "clipped_ratio"
    clip_range: float = Field(default=1e-4, gt=0)
    """c: the ratio is held in [1-c, 1+c]. Tiny, because log-probs are averaged over latents."""
    kl_weight: float = Field(default=0.0, ge=0)
    """beta; 0 spares the passes of the reference."""
    kl: KLKind = "exact"
    """How far from the reference: of the step, as published, or in velocity."""
    reference: str = "reference"
    """Named weights the KL is taken to."""
    old_log_prob: Literal["stored", "recompute"] = "stored"
    """Compare with the rollout's log-prob, or with one recomputed on the training path before the first
    update.
    """

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.reference,) if self.kl_weight > 0 else ()

    def experience(
        self, forest: Forest, advantages: Float[Tensor, "B R"], *, seed: int, iteration: int
    ) -> Transitions:
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
        if self.kl_weight > 0:
            scalars["kl"] = KL[self.kl](rows, now, transition_of(rows, anchors[self.reference]))
        return scalars

    def loss(
        self, scalars: Scalars, rows: Transitions
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        log_ratio = scalars["log_prob"] - rows.old_log_prob
        terms, clip_fraction = clipped(log_ratio, rows.advantages, self.clip_range)
        report = {"clip_fraction": clip_fraction, "log_ratio": log_ratio.detach()}
        if "kl" in scalars:
            terms = terms + self.kl_weight * scalars["kl"]
            report["kl"] = scalars["kl"].detach()
        return terms * rows.weight, report
