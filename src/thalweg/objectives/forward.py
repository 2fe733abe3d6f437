"""Learning from finished samples on the forward process: no path, no log-likelihood of a trajectory.

    x = (1-σ) x0 + σ ε,      L = rule(E(v_θ), A) + Σ_k (w_k + u_k A) s <(v_θ - v_k)²>

A surrogate E stands in for -log p(x0), a rule makes a loss of it and of the advantage A, and pulls hold the
policy to named weights v_k. DiffusionNFT, AWM, V-GRPO, AdvantageFlow, RAM, CRD, DPO, DGPO and the ELBO
policy gradients differ in these alone (docs/parts/objectives.md), and all start with a step along A ∇E. A
pull with u = -1 to the old policy takes <(v_θ - v_old)²> off each regression error, which leaves the
covariance of A and v: with w = 1 to the reference that is RAM's regression on v_ref + A (v - v_old), up to
a constant.

<.> is a mean over latent elements. Shapes: B rows, R rewards (added up), ... latent axes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.flow import LinearPath
from thalweg.objectives.advantage_map import AdvantageMap
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.forward_rows import Noise, samples
from thalweg.objectives.rules import AnyRule
from thalweg.objectives.sigma_draw import Sigmas, Stratified
from thalweg.objectives.surrogate import Regression, Surrogate, squared

PATH = LinearPath()


class Pull(Part):
    """A quadratic pull of the velocity towards that of named weights."""

    to: str
    """The named weights."""
    weight: float = Field(default=0.0, ge=0)
    """w."""
    advantage_weight: float = 0.0
    """u: adds u A to the weight, A after `advantage`; the sum may be negative and push."""
    space: Literal["velocity", "x", "surrogate"] = "velocity"
    """s: 1; σ², a distance of x̂0; or the weight that the surrogate gives the row."""


class Forward(Part):
    """One loss term a sample and noise level, or what the rule spans."""

    kind: Literal["forward"] = "forward"
    surrogate: Surrogate = Regression()
    """E: what stands in for -log p(x0)."""
    advantage: AdvantageMap = AdvantageMap()
    """A: what becomes of the advantage that credit gives."""
    rule: AnyRule
    """The loss, and what ends the step."""
    pulls: tuple[Pull, ...] = ()
    """Towards the old policy, the reference, an average."""
    sigmas: Sigmas = Stratified()
    """The noise levels of a sample."""
    noise: Noise = "fresh"
    """ε: drawn anew at every level, `one` for all levels, or the noise that the `rollout` started from."""
    shared_in_group: bool = False
    """Draw levels and noise once for all samples of a prompt, so that they can be compared."""

    @model_validator(mode="after")
    def _finite(self) -> "Forward":
        elbo = isinstance(self.surrogate, Regression) and self.surrogate.weighting == "elbo"
        if elbo and isinstance(self.sigmas, Stratified) and self.sigmas.sigma_min == 0:
            raise ValueError(
                "surrogate.weighting='elbo' is infinite at sigma 0; give sigmas.sigma_min=0.01 or more"
            )
        return self

    @property
    def unit(self) -> Unit:
        return self.rule.unit

    @property
    def clip_range(self) -> float:
        """Of the ratio, 0 where the rule has none."""
        return getattr(self.rule, "clip_range", 0.0)

    @property
    def anchors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.rule.compared, *(pull.to for pull in self._acting))))

    @property
    def _acting(self) -> tuple[Pull, ...]:
        """Without those of weight 0, which spares their passes."""
        return tuple(pull for pull in self.pulls if pull.weight > 0 or pull.advantage_weight != 0)

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Samples:
        return samples(
            forest,
            advantages,
            self.sigmas,
            seed=seed,
            iteration=iteration,
            noise=self.noise,
            shared_in_group=self.shared_in_group,
        )

    def inputs(self, rows: Samples) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return PATH.corrupt(rows.x0, rows.noise, rows.sigma), rows.sigma

    def measure(
        self,
        rows: Samples,
        x: Float[Tensor, "B ..."],
        velocity: Float[Tensor, "B ..."],
        anchors: Mapping[str, Float[Tensor, "B ..."]],
    ) -> Scalars:
        target = PATH.target(rows.x0, rows.noise)

        def error(of: Tensor) -> Tensor:
            return self.surrogate.error(of - target, rows.sigma)

        scalars = self.rule.measure(error, velocity, anchors)
        scalars |= {f"distance/{name}": squared(velocity - anchors[name]) for name in self.anchors}
        if any(pull.space == "surrogate" for pull in self._acting):
            scalars["pull_weight"] = self.surrogate.weight(velocity - target, rows.sigma)
        return scalars

    def loss(
        self, scalars: Scalars, rows: Samples
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        advantage = self.advantage(rows.advantages)
        terms, report = self.rule.loss(scalars, advantage, rows)
        scales = {
            "velocity": torch.ones_like(rows.sigma),
            "x": rows.sigma**2,
            "surrogate": scalars.get("pull_weight"),
        }
        for pull in self._acting:
            strength = pull.weight + pull.advantage_weight * advantage
            terms = terms + strength * scales[pull.space] * scalars[f"distance/{pull.to}"]
        report |= {name: u.detach() for name, u in scalars.items() if name.startswith("distance/")}
        return terms * rows.weight, report
