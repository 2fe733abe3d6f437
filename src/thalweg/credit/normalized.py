"""How much better than its group: rewards to advantages (Shao et al. 2024, arXiv:2402.03300).

    A_i = (r_i - mean of the group) / (std + epsilon),      held in [-limit, limit]

Groups are told by integer identity, never by the text of a prompt. Statistics are float64 and cover the rows
of all processes. A reward that is not finite marks an invalid row: it takes no part in statistics and gets
advantage 0. Shapes: B rows of all processes, g groups.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.processes import Processes


class Normalized(Part):
    """Fields only, shared by all kinds of credit so that they mean and default to the same everywhere."""

    std: Literal["group", "global", "max", "none"] = "group"
    """Divide by the standard deviation of the group, by that over all rows, by the largest of any group, or
    not at all (Dr. GRPO).
    """
    ddof: int = Field(default=0, ge=0, le=1)
    """0: population standard deviation; 1: unbiased."""
    epsilon: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""
    limit: float | None = Field(default=5.0, gt=0)
    """Largest size of an advantage."""
    trimmed_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Leave this share of each group, its lowest rewards, out of mean and standard deviation, and out of
    nothing else (Tencent-Hunyuan/MixGRPO, `trimmed_ratio`).
    """


def normalise(
    how: Normalized,
    rewards: Float[Tensor, " B"],
    group: Int64[Tensor, " B"],
    valid: Bool[Tensor, " B"],
    floor: float | Float[Tensor, " B"] = 0.0,
) -> Float[Tensor, " B"]:
    """Advantages, float64; a standard deviation is taken as `floor` where it is less."""
    if len(rewards) == 0:
        return rewards.double()
    counted = valid & ~_lowest(rewards, group, valid, how.trimmed_fraction)
    mean, std, _ = statistics(rewards, group, counted, how.ddof)
    _, _, spread = statistics(rewards, group, valid, how.ddof)
    centred = rewards - mean[group]
    scale = {
        "group": lambda: std[group],
        "global": lambda: statistics(rewards, torch.zeros_like(group), counted, how.ddof)[1],
        "max": lambda: std.max(),
    }
    if how.std != "none":
        divisor = torch.maximum(scale[how.std](), torch.as_tensor(floor, dtype=torch.float64))
        divisor = divisor + how.epsilon
        centred = centred / torch.where(divisor > 0, divisor, torch.inf)
    centred = torch.where(valid & spread[group], centred, 0)
    return centred if how.limit is None else centred.clamp(-how.limit, how.limit)


def _lowest(
    values: Float[Tensor, " B"], group: Int64[Tensor, " B"], valid: Bool[Tensor, " B"], fraction: float
) -> Bool[Tensor, " B"]:
    """The lowest share of each group's valid entries, rounded down; among equals those that come first."""
    lowest = torch.zeros_like(valid)
    for number in group.unique().tolist() if fraction else ():
        own = ((group == number) & valid).nonzero().flatten()
        lowest[own[values[own].argsort(stable=True)][: int(fraction * len(own))]] = True
    return lowest


def statistics(
    values: Float[Tensor, " B"], group: Int64[Tensor, " B"], valid: Bool[Tensor, " B"], ddof: int
) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"], Bool[Tensor, " g"]]:
    """Mean, standard deviation and whether there are different values, for each group's valid entries."""
    size = int(group.max()) + 1
    known = torch.where(valid, values, 0).double()

    def total(x: Tensor) -> Tensor:
        return torch.zeros(size, dtype=torch.float64).index_add(0, group, x.double())

    count = total(valid)
    mean = total(known) / count.clamp(min=1)
    squares = total(torch.where(valid, (known - mean[group]) ** 2, 0))
    std = (squares / (count - ddof).clamp(min=1)).sqrt()
    low = torch.full((size,), torch.inf, dtype=torch.float64).scatter_reduce(
        0, group, torch.where(valid, known, torch.inf), "amin"
    )
    high = torch.full((size,), -torch.inf, dtype=torch.float64).scatter_reduce(
        0, group, torch.where(valid, known, -torch.inf), "amax"
    )
    # Compared, not computed: the rounding of a mean would give equal rewards a tiny advantage.
    return mean, std, high > low


def numbered(*keys: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """0 .. g - 1 for each row: rows with the same keys have the same number."""
    return torch.unique(torch.stack(keys, 1), dim=0, return_inverse=True)[1]


def across(
    processes: Processes, columns: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Bool[Tensor, " B"]]:
    """Rows of all processes, and which of them are this one's."""
    count = len(next(iter(columns.values())))
    rank = {"rank of the row": torch.full((count,), processes.rank, dtype=torch.int64)}
    everyone = processes.gather({**columns, **rank})
    return everyone, everyone.pop("rank of the row") == processes.rank
