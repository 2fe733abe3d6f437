"""Samples of several sizes in one forest: latents of different shapes as flat rows of one length.

Rows shorter than the longest are filled up with zeros for storage alone. Everything that is worked out
(network passes, kernels, log-probs, losses, decoding) sees rows of one size in their own shape, which
`values.with_latents_of` cuts out. Memory is that of the longest row.

Shapes: B rows, E elements of the longest.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from thalweg.core.forest import Forest, Leaves, Level, Roots


def stacked(parts: Sequence[Float[Tensor, "_ ..."]], num_elements: int = 0) -> Float[Tensor, "B E"]:
    """Rows of several shapes under each other, flat, at least `num_elements` long."""
    flat = [part.flatten(1) for part in parts]
    longest = max(num_elements, *(part.shape[1] for part in flat))
    return torch.cat([pad(part, (0, longest - part.shape[1])) for part in flat])


def cut_out(latents: Float[Tensor, "B ..."], shape: tuple[int, ...]) -> Float[Tensor, "B ..."]:
    """Latents of one size in their own shape."""
    if tuple(latents.shape[1:]) == shape:
        return latents
    return latents.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)


def joined(forests: Sequence[Forest]) -> Forest:
    """One forest of trees of several sizes, which grew over equally many noise levels from one condition."""
    first, at_level = forests[0], list(zip(*(forest.levels for forest in forests), strict=True))
    counts = [[len(level.parent) for level in levels] for levels in at_level]
    before = torch.tensor(counts).cumsum(1) - torch.tensor(counts)  # nodes of earlier forests, a row a level
    roots = torch.tensor([len(forest.roots) for forest in forests])
    roots = (roots.cumsum(0) - roots).tolist()
    starts = [forest.starts for forest in forests if forest.starts is not None]
    assert not starts  # given samples are an embedded world's, of one size

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
        parts=(0,),
    )


def _one_level(levels: Sequence[Level], above: Sequence[int] | None, roots: Sequence[int]) -> Level:
    """The levels of several forests under each other; `above` counts the nodes of earlier ones a level up."""
    moved, stored = [], 0
    for number, level in enumerate(levels):
        moved.append(
            {
                **{
                    name: getattr(level, name) for name in ("sigma", "end", "trained", "k", "std", "log_prob")
                },
                "depth": level.depth,
                "parent": level.parent if above is None else level.parent + above[number],
                "root": level.root + roots[number],
                "row": torch.where(level.row < 0, level.row, level.row + stored),
            }
        )
        stored += len(level.latents)
    means = [level.mean for level in levels if level.mean is not None]
    return Level(
        **{name: torch.cat([columns[name] for columns in moved]) for name in moved[0]},
        latents=stacked([level.latents for level in levels]),
        mean=stacked(means) if means else None,
    )
