"""Learning from finished samples on the forward process: no path, no log-likelihood of a trajectory.

    x = (1-σ) x0 + σ ε,      L = rule(E(v_θ), A) + Σ_k (w_k + u_k A) s <(v_θ - v_k)²>

A surrogate E stands in for -log p(x0), a rule makes a loss of it and of the advantage A, and pulls hold the
policy to named weights v_k. DiffusionNFT, AWM, V-GRPO, AdvantageFlow, RAM, CRD, DPO, DGPO and the ELBO
policy gradients differ in these alone (docs/parts/objectives.md), and all start with a step along A ∇E. A
pull with u = -1 to the old policy takes <(v_θ - v_old)²> off each regression error, which leaves the
covariance of A and v: with w = 1 to the reference that is RAM's regression on v_ref + A (v - v_old), up to
a constant.

Where credit names regions m_r of the latents, each advantage A_r has its own, and L is the mean over r of
rule(E_r, A_r) with E_r over m_r: one advantage a modality (OmniNFT, arXiv:2605.12480), or blame for a place
(CreFlow, arXiv:2605.14274). Samples that credit corrects also stand in rows of λ <(v_θ - (ε - x̃0))²> over
where they are to be corrected, x̃0 what they should have been (CreFlow's corrective reflow).

<.> is a mean over latent elements. Shapes: B rows, R rewards (added up without regions), ... latent axes.
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
from thalweg.objectives.advantage_map import AdvantageMap
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.forward_rows import PATH, Noise, samples
from thalweg.objectives.rules import AnyRule, Weighted
from thalweg.objectives.rules.contract import Error, Terms
from thalweg.objectives.sigma_draw import Grid, Sigmas, Stratified
from thalweg.objectives.surrogate import ELBO_SIGMA_MIN, Region, Regression, Surrogate, squared


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
    """ε: drawn anew at every level, `one` for all levels, the noise that the `rollout` started from, or, at
    levels of its grid, what makes x the state on the sample's own `path`; the rollout keeps its states.
    """
    shared_in_group: bool = False
    """Draw levels and noise once for all samples of a prompt, so that they can be compared."""
    corrective_weight: float = Field(default=0.0, ge=0)
    """λ: of regression on corrected samples, where the credit corrects some; each is one more row a level."""

    @model_validator(mode="after")
    def _finite(self) -> "Forward":
        if not self.is_elbo:
            return self
        # A grid's levels are those of the rollout, where recipes are checked.
        if not isinstance(self.sigmas, Grid) and self.sigmas.lowest < ELBO_SIGMA_MIN:
            raise ValueError(
                f"surrogate.weighting='elbo' grows as 1/sigma, and sigmas '{self.sigmas.kind}' may go down "
                f"to {self.sigmas.lowest:g}; give sigmas.sigma_min={ELBO_SIGMA_MIN} or more, after its shift"
            )
        if isinstance(self.rule, Weighted) and self.rule.old is None:
            raise ValueError(
                "surrogate.weighting='elbo' bounds log p up to an infinite constant, which only a difference "
                "of two models cancels, and rule 'weighted' has none without `old`; name weights in "
                "rule.old, or use another weighting"
            )
        return self

    @model_validator(mode="after")
    def _on_the_grid(self) -> "Forward":
        if self.noise == "path" and not isinstance(self.sigmas, Grid):
            raise ValueError(
                f"noise='path' has states at the rollout's levels alone, and sigmas '{self.sigmas.kind}' "
                "draws others; use sigmas={kind: grid}, or noise=rollout"
            )
        return self

    @property
    def is_elbo(self) -> bool:
        """Whether errors are bounds of log p, which are infinite at σ = 0."""
        return isinstance(self.surrogate, Regression) and self.surrogate.weighting == "elbo"

    @property
    def unit(self) -> Unit:
        return self.rule.unit

    @property
    def clip_range(self) -> float:
        """Of the ratio, 0 where the rule has none."""
        return getattr(self.rule, "clip_range", 0.0)

    @property
    def anchors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.rule.compared, *(pull.to for pull in self.acting_pulls))))

    @property
    def keeps_states(self) -> bool:
        """Whether the rollout must keep the states that its samples went through."""
        return self.noise == "path"

    @property
    def acting_pulls(self) -> tuple[Pull, ...]:
        """The pulls without those of weight 0, which spares their passes."""
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
            with_corrected=self.corrective_weight > 0,
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

        def error_over(region: Region) -> Error:
            return lambda of: self.surrogate.error(of - target, rows.sigma, region)

        if rows.regions is None:
            scalars = self.rule.measure(error_over(None), velocity, anchors)
        else:
            scalars = {}
            for r, region in enumerate(rows.regions.unbind(1)):
                of_region = self.rule.measure(error_over(region.to(velocity)), velocity, anchors)
                scalars |= {f"region {r}/{name}": u for name, u in of_region.items()}
        if rows.corrected is not None:
            region = None if rows.regions is None else rows.regions.amax(1).to(velocity)
            scalars["corrective_error"] = squared(velocity - target, region)
        scalars |= {f"distance/{name}": squared(velocity - anchors[name]) for name in self.anchors}
        if any(pull.space == "surrogate" for pull in self.acting_pulls):
            scalars["pull_weight"] = self.surrogate.weight(velocity - target, rows.sigma)
        return scalars

    def loss(
        self, scalars: Scalars, rows: Samples
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        advantage = self.advantage(rows.advantages)
        terms, report = self._ruled(scalars, advantage, rows)
        scales = {
            "velocity": torch.ones_like(rows.sigma),
            "x": rows.sigma**2,
            "surrogate": scalars.get("pull_weight"),
        }
        for pull in self.acting_pulls:
            strength = pull.weight + pull.advantage_weight * advantage
            terms = terms + strength * scales[pull.space] * scalars[f"distance/{pull.to}"]
        report |= {name: u.detach() for name, u in scalars.items() if name.startswith("distance/")}
        return terms * rows.weight, report

    def _ruled(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        """The rule's terms, the mean over regions; and those of corrected rows."""
        if rows.regions is None:
            terms, report = self.rule.loss(scalars, advantage, rows)
        else:
            found = list[Terms]()
            for r, column in enumerate(rows.advantages.split(1, 1)):
                prefix = f"region {r}/"
                own = {n.removeprefix(prefix): u for n, u in scalars.items() if n.startswith(prefix)}
                found.append(self.rule.loss(own, self.advantage(column), rows))
            terms = torch.stack([one for one, _ in found]).mean(0)
            report = {name: torch.stack([of[name] for _, of in found]).mean(0) for name in found[0][1]}
        if rows.corrected is not None:
            missed = scalars["corrective_error"]
            terms = torch.where(rows.corrected, self.corrective_weight * missed, terms)
            report["corrected"] = rows.corrected.to(missed.dtype)
        return terms, report
