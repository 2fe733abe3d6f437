"""Choose initial noises by cheap samples, then draw the chosen ones again for training (Sol-RL,
arXiv:2604.06916).

A pool of initial noises of every prompt is followed by a few deterministic steps, under weights that may be
rounded to low precision, and scored; the best and the worst stay. Cheap samples are thrown away: rewards and
statistics are those of the samples drawn again. Shapes: S noises of the pool.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.models.weights import POLICY


class Explore(Part):
    """How many are looked at, and how cheaply."""

    pool: int = Field(ge=2)
    """Initial noises looked at for each prompt."""
    steps: PositiveInt
    """Denoising steps of a look."""
    choose: Literal["extremes", "random"] = "extremes"
    """Half of the best and half of the worst, or any: then looking would be of no use."""
    weights: str = POLICY
    """The named weights that act; `update: {kind: rounded}` makes a low-precision copy."""

    def chosen(self, rewards: Float[Tensor, " S"], count: int, draw: Address) -> Int64[Tensor, " c"]:
        """Which `count` noises stay, in order of their number; those without a reward stay last."""
        if self.choose == "random":
            return draw.permutation(len(rewards))[:count].sort().values
        # Ties in random order, or a reward of 0 and 1 would choose by number.
        shuffled = draw.permutation(len(rewards))
        order = shuffled[
            rewards.nan_to_num(nan=float(rewards.nanmean().nan_to_num()))[shuffled].argsort(stable=True)
        ]
        worst = count // 2
        best = count - worst
        return torch.cat([order[:worst], order[len(order) - best :]]).sort().values


def rank_agreement(cheap: Float[Tensor, " S"], full: Float[Tensor, " S"]) -> float:
    """Spearman's rank correlation of two scorings, ties at their mean rank; 0 where one of them is flat."""
    a, b = _ranks(cheap), _ranks(full)
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _ranks(values: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """1 + how many are less + half of how many others are equal."""
    less = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1) - 1
    return (1 + less).double() + equal.double() / 2
