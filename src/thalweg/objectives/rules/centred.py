"""Centred reward distillation, CRD (arXiv:2603.14128; X-GenGroup/Flow-Factory).

    g = E_old - E,    L = (M/beta) (beta [g - mean g] - [r - mean r])²,    r = clip(A, -M, M) / (2M) + 1/2

beta g is the reward that the policy implies up to a constant of the prompt, which centring removes: at the
optimum beta (g_i - g_j) = r_i - r_j. The mean of g has no gradient. `cross_entropy` compares
sigmoid(beta [g - mean g]) with sigmoid(r - mean r), with the same factor.

With a temperature T the loss is the average of two copies, whose means of g and of r are weighted by
softmax(r / T), which takes them among the good samples, and by softmax(-r / T), among the bad ones. T = 0
takes plain means over the samples of A > 0 and over those of A < 0, and over all where there are none: our
reading, and not the limit of small T. (Flow-Factory asks which r, in [0, 1], lie above and below 0, which
leaves both pools with all samples, and weighs the first by softmax(r).) Shapes: B rows, ... latent axes.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.objectives.advantage_map import optimality
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.rules.contract import Error, Terms
from thalweg.objectives.segments import log_softmax_over, mean_over, segments, sum_over

Match = Literal["squares", "cross_entropy"]

MATCHES: Mapping[Match, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": lambda implied, given: (implied - given).pow(2),
    "cross_entropy": lambda implied, given: binary_cross_entropy_with_logits(
        implied, given.sigmoid(), reduction="none"
    ),
}


class Centred(Part):
    """One term a row, which sees its group through two means."""

    kind: Literal["centred"] = "centred"
    beta: PositiveFloat = 1.0
    """The scale of the implied reward."""
    advantage_max: PositiveFloat = 5.0
    """M: the advantage at which r reaches 0 or 1."""
    match: Match = "squares"
    """How the implied reward is fitted to the given one."""
    centre: Literal["prompt", "batch"] = "prompt"
    """Take means over the samples of a prompt, or as Flow-Factory over all, which leaves the constants of the
    prompts in. Both at each noise level by itself.
    """
    temperature: float | None = Field(default=None, ge=0)
    """T of r in [0, 1]; None, the limit of large T, takes plain means, 0 those of good and of bad ones."""
    old: str = "old"
    """Named weights that the implied reward is measured from."""

    @property
    def unit(self) -> Unit:
        return "group"

    @property
    def compared(self) -> tuple[str, ...]:
        return (self.old,)

    def measure(
        self, error: Error, velocity: Float[Tensor, "B ..."], anchors: Mapping[str, Float[Tensor, "B ..."]]
    ) -> Scalars:
        return {"error": error(velocity), "old_error": error(anchors[self.old])}

    def loss(self, scalars: Scalars, advantage: Float[Tensor, " B"], rows: Samples) -> Terms:
        gain = scalars["old_error"].detach() - scalars["error"]
        share = optimality(advantage, self.advantage_max)
        levels = (rows.step,) if self.centre == "batch" else (rows.prompt_slot, rows.step)
        level = segments(*levels)
        copies = list[Tensor]()
        for counts in self._counts(share, rows.weight, level):
            implied = self.beta * (gain - mean_over(gain.detach(), counts, level))
            given = share - mean_over(share, counts, level)
            copies.append(MATCHES[self.match](implied, given))
        terms = self.advantage_max / self.beta * torch.stack(copies).mean(0)
        return terms, {"log_ratio": gain.detach()}

    def _counts(
        self, share: Float[Tensor, " B"], weight: Float[Tensor, " B"], level: Int64[Tensor, " B"]
    ) -> list[Float[Tensor, " B"]]:
        """How much each row counts in the means, for each copy of the loss."""
        weight = weight.to(share)
        if self.temperature is None:
            return [weight]
        if self.temperature == 0:
            pools = [weight * (share > 0.5), weight * (share < 0.5)]
            return [torch.where(sum_over(pool, level) > 0, pool, weight) for pool in pools]
        return [weight * log_softmax_over(r / self.temperature, level).exp() for r in (share, -share)]
