"""The gradient of a differentiable reward, back-propagated through sampling: ReFL, DRaFT, AlignProp, DRTune,
LeapAlign, SRPO.

    L = -w r(x̂0) + λ <(v_θ - v_ref)²>,      or with a margin m,      w max(0, m - r(x̂0)) in place of -w r

A route leads from stored states to x̂0 with a gradient to the weights, and says w. Methods differ in the
route alone, and in what they call good (`relative`). λ is ours, at the state where the route begins: it has
the place of ReFL's loss of pre-training, without its data. With λ = 0 nothing holds the policy back but the
margin and the number of iterations: watch held-out rewards. Shapes: B rows, ... latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.objectives.contract import CURRENT, Unit, VelocityField
from thalweg.objectives.routes import Route


class Relative(Part):
    """SRPO's reward of two wordings of the prompt, f+ and f- (arXiv:2509.06942; Tencent-Hunyuan/SRPO):

        denoise: (1+k) f+ - f-,      invert: (1+k) f- - f+,      k from its value at noise to that at data

    so that what the sample owes to neither wording cancels.
    """

    positive: str = "{}"
    """The prompt as it should be scored; {} stands for it."""
    negative: str = ""
    """The same with what is to be avoided; empty is the unconditional prompt."""
    denoise: tuple[float, float] = (0.1, 0.25)
    """k of rows that denoise, at σ = 1 and at σ = 0."""
    invert: tuple[float, float] = (0.3, 0.01)
    """k of rows that invert."""

    def reward(self, field: VelocityField, x0: Float[Tensor, "B ..."], rows: Paths) -> Float[Tensor, " B"]:
        good, bad = field.reward(x0, self.positive), field.reward(x0, self.negative)
        sigma = rows.sigmas[:, 0].to(good.dtype)

        def k(ends: tuple[float, float]) -> Tensor:
            return ends[1] + (ends[0] - ends[1]) * sigma

        denoised, inverted = (1 + k(self.denoise)) * good - bad, (1 + k(self.invert)) * bad - good
        return torch.where(rows.step == 1, inverted, denoised)


class RewardGradient(Part):
    """One term a row of the route."""

    kind: Literal["reward_gradient"] = "reward_gradient"
    route: Route
    """The way from stored states to a sample with a gradient."""
    margin: float | None = None
    """m: a sample worth as much has no gradient; None climbs without end."""
    scale: PositiveFloat = 1.0
    """Factor of the loss; without clipping of gradients and with plain Adam it changes nothing."""
    relative: Relative | None = None
    """Score two wordings of the prompt against each other."""
    reference_weight: NonNegativeFloat = 0.0
    """λ: of the distance to the reference, beside `scale`; 0 spares its passes."""
    reference: str = "reference"
    """Named weights that the distance is from."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.reference,) if self.reference_weight > 0 else ()

    @property
    def reads_reward(self) -> bool:
        return True

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        return self.route.paths(forest, advantages, seed=seed, iteration=iteration)

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        gradient, others = self.route.passes(steps)
        return gradient, {CURRENT: others} | dict.fromkeys(self.anchors, self.route.walks)

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        before = [field.velocity_of(name, *self.route.start(rows)) for name in self.anchors]
        walk = self.route.follow(field, rows)
        x0, count = walk.x0, walk.count
        reward = field.reward(x0) if self.relative is None else self.relative.reward(field, x0, rows)
        terms = -reward if self.margin is None else (self.margin - reward).relu()
        report = {"path_reward": reward.detach()}
        if self.margin is not None:
            report["margin_reached"] = (reward.detach() >= self.margin).float()
        terms = self.scale * count.to(terms) * terms
        for base in before:
            far = (walk.velocity - base).square().flatten(1).mean(1)
            terms = terms + self.reference_weight * far.to(terms)
            report[f"distance/{self.reference}"] = far.detach()
        return terms * rows.weight.to(terms), report
