"""How an advantage becomes the weight of a sample. Shapes: B rows, R rewards."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.part import Part

Shape = Literal["clip", "tanh", "sign"]
Side = Literal["both", "positive", "negative"]

SHAPES: Mapping[Shape, Callable[[Tensor, float], Tensor]] = {
    "clip": lambda a, limit: a.clamp(-limit, limit),
    "tanh": lambda a, limit: limit * torch.tanh(a / limit) if limit < torch.inf else a,
    "sign": lambda a, limit: a.sign(),
}
SIDES: Mapping[Side, Callable[[Tensor], Tensor]] = {
    "both": lambda a: a,
    "positive": lambda a: a.clamp(min=0),
    "negative": lambda a: a.clamp(max=0),
}


class AdvantageMap(Part):
    """Advantages of several rewards are added, then shaped, then scaled."""

    shape: Shape = "clip"
    """Cut off at `limit`; saturate towards it, limit · tanh(A / limit); or keep the sign alone."""
    limit: float | None = Field(default=None, gt=0)
    """None leaves the advantage as credit made it."""
    scale: float = Field(default=1.0, gt=0)
    """Factor, after the shape."""
    side: Side = "both"
    """Learn from all samples, from good ones alone or from bad ones alone."""

    def __call__(self, advantages: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        limit = torch.inf if self.limit is None else self.limit
        return self.scale * SIDES[self.side](SHAPES[self.shape](advantages.sum(1), limit))

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest advantage that comes out; infinite without a limit."""
        lowest, highest = self(torch.tensor([[-torch.inf], [torch.inf]])).tolist()
        return lowest, highest


def optimality(advantage: Float[Tensor, "*B"], limit: float) -> Float[Tensor, "*B"]:
    """r in [0, 1]: the advantage as the probability that a sample is a good one."""
    return advantage.clamp(-limit, limit) / (2 * limit) + 0.5
