"""Forests that grew apart, under each other as one: of several sizes, or on several workers.

Rows of nodes are counted on; ends and samples keep their numbers.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from thalweg.core.forest import Forest, Leaves, Level, Roots
from thalweg.core.sizes import stacked


def joined(forests: Sequence[Forest]) -> Forest:
    """One forest of all their trees, which grew over equally many noise levels; its condition and prompts are
    those of the first.
    """
    first, at_level = forests[0], list(zip(*(forest.levels for forest in forests), strict=True))
    counts = [[len(level.parent) for level in levels] for levels in at_level]
    before = torch.tensor(counts).cumsum(1) - torch.tensor(counts)  # nodes of earlier forests, a row a level
    roots = torch.tensor([len(forest.roots) for forest in forests])
    roots = (roots.cumsum(0) - roots).tolist()
    assert all(forest.starts is None for forest in forests)  # given samples join a forest later

    def column(name: str, of: Sequence[Roots] | Sequence[Leaves]) -> Tensor:
        return torch.cat([getattr(table, name) for table in of])

    probe_start = []
    for number, forest in enumerate(forests):
        level = forest.probe_start[:, 0]
        probe_start.append(torch.stack([level, forest.probe_start[:, 1] + before[level, number]], 1))
    return replace(
        first,
        levels=tuple(
            _one_level(levels, before[at - 1].tolist() if at else None, roots)
            for at, levels in enumerate(at_level)
        ),
        roots=Roots(**{f.name: column(f.name, [forest.roots for forest in forests]) for f in fields(Roots)}),
        leaves=Leaves(
            **{f.name: column(f.name, [forest.leaves for forest in forests]) for f in fields(Leaves)}
        ),
        leaf_node=torch.cat([f.leaf_node + before[-1, i] for i, f in enumerate(forests)]),
        probe_node=torch.cat([f.probe_node + before[-1, i] for i, f in enumerate(forests)]),
        probe_start=torch.cat(probe_start),
        attention=None
        if first.attention is None
        else _under_each_other([forest.attention for forest in forests if forest.attention is not None]),
        parts=first.parts if _alike([forest.latents for forest in forests]) else (0,),
    )


def _one_level(levels: Sequence[Level], above: Sequence[int] | None, roots: Sequence[int]) -> Level:
    """The levels of several forests under each other; `above` counts the nodes of earlier ones a level up."""
    moved, stored = [], 0
    for number, level in enumerate(levels):
        same = ("sigma", "end", "trained", "k", "std", "log_prob", "depth")
        moved.append(
            {name: getattr(level, name) for name in same}
            | {
                "parent": level.parent if above is None else level.parent + above[number],
                "root": level.root + roots[number],
                "row": torch.where(level.row < 0, level.row, level.row + stored),
            }
        )
        stored += len(level.latents)
    # A forest that drew nothing at this step has no means, and nothing to train.
    means = [level.mean for level in levels if level.mean is not None]
    return Level(
        **{name: torch.cat([columns[name] for columns in moved]) for name in moved[0]},
        latents=_under_each_other([level.latents for level in levels]),
        mean=_under_each_other(means) if means else None,
    )


def _under_each_other(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if _alike(parts) else stacked(parts)


def _alike(parts: Sequence[Tensor]) -> bool:
    """Whether rows have one shape."""
    return len({part.shape[1:] for part in parts}) == 1
