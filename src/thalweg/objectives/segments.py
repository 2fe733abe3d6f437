"""Rows that belong together, and what is worked out over them. Shapes: B rows."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def segments(*columns: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """A number for each row, 0, 1, ...; rows that agree in all columns have the same."""
    return torch.unique(torch.stack(columns, 1), dim=0, return_inverse=True)[1]


def sum_over(values: Float[Tensor, " B"], segment: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The sum over each row's segment."""
    size = int(segment.max()) + 1 if len(segment) else 0
    return torch.zeros(size, dtype=values.dtype).index_add(0, segment, values)[segment]


def mean_over(
    values: Float[Tensor, " B"], weight: Float[Tensor, " B"], segment: Int64[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The weighted mean of each row's segment, 0 where its weights add up to 0."""
    weight = weight.to(values.dtype)
    mass = sum_over(weight, segment)
    return sum_over(values * weight, segment) / torch.where(mass == 0, 1, mass)


def best_and_worst(
    advantage: Float[Tensor, " B"], sample: Int64[Tensor, " B"], group: Int64[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """1 for all rows of the best sample of each group, -1 for those of its worst, 0 for the others.

    A group whose advantages are all equal has neither. Of several best ones the first number counts.
    """
    size = int(group.max()) + 1 if len(group) else 0
    rank = torch.zeros_like(advantage)
    ends = {}
    for sign, reduce in ((1, "amax"), (-1, "amin")):
        start = torch.zeros(size, dtype=advantage.dtype)
        ends[sign] = start.scatter_reduce(0, group, advantage, reduce, include_self=False)[group]
        candidate = torch.where(advantage == ends[sign], sample, torch.iinfo(torch.int64).max)
        first = torch.zeros(size, dtype=torch.int64)
        first = first.scatter_reduce(0, group, candidate, "amin", include_self=False)
        rank[sample == first[group]] = sign
    return torch.where(ends[1] > ends[-1], rank, 0)


def log_softmax_over(values: Float[Tensor, " B"], segment: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log of each row's share in the exponentials of its segment."""
    size = int(segment.max()) + 1 if len(segment) else 0
    highest = torch.zeros(size, dtype=values.dtype)
    highest = highest.scatter_reduce(0, segment, values.detach(), "amax", include_self=False)
    lifted = values - highest[segment]
    return lifted - sum_over(lifted.exp(), segment).log()
