"""One forest, grown in shares: its roots split, and what grew from each part joined again.

Draws have addresses, so a root grows into the same tree wherever it stands, and the joined forest is the one
that all roots would have given together. Shapes: n nodes of a level, r roots, Q probes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from thalweg.core.forest import Forest, Leaves, Level, Roots
from thalweg.core.values import Condition, Prompt
from thalweg.rollout.root import Root


@dataclass(frozen=True)
class Share:
    """Some roots, and which prompts they need."""

    rows: tuple[int, ...]
    """Of the prompts of the whole."""
    roots: tuple[Root, ...]
    """Their `condition` counts over `rows`."""


def share_of(roots: Sequence[Root]) -> Share:
    """These roots with the prompts they need alone."""
    rows = sorted({root.condition for root in roots})
    return Share(tuple(rows), tuple(replace(root, condition=rows.index(root.condition)) for root in roots))


def split(roots: Sequence[Root], count: int) -> list[Share]:
    """At most `count` shares, contiguous and as equal as can be; none of them is empty."""
    cuts = [part * len(roots) // count for part in range(count + 1)]
    return [share_of(roots[a:b]) for a, b in pairwise(cuts) if a < b]


def joined(
    forests: Sequence[Forest], shares: Sequence[Share], prompts: Sequence[Prompt], condition: Condition
) -> Forest:
    """The forest of all roots from those of its shares, as they grew and in their order; `prompts` and
    `condition` are those of the whole.
    """
    sizes = [torch.tensor([len(level.parent) for level in forest.levels]) for forest in forests]
    before = _before(sizes)  # nodes of the earlier forests, at every level
    roots_before = _before([torch.tensor(len(forest.roots)) for forest in forests])
    levels = []
    for at in range(len(forests[0].levels)):
        above = [nodes[at - 1] for nodes in before]
        levels.append(_level([forest.levels[at] for forest in forests], above, roots_before))
    last = [int(nodes[-1]) for nodes in before]
    here = zip(forests, shares, strict=True)
    return Forest(
        levels=tuple(levels),
        roots=Roots(
            prompt_slot=torch.cat([forest.roots.prompt_slot for forest in forests]),
            seed_group=torch.cat([forest.roots.seed_group for forest in forests]),
            condition=torch.cat([torch.tensor(share.rows)[forest.roots.condition] for forest, share in here]),
        ),
        leaves=Leaves(
            **{
                name: torch.cat([getattr(forest.leaves, name) for forest in forests])
                for name in vars(forests[0].leaves)
            }
        ),
        prompts=tuple(prompts),
        condition=condition,
        leaf_node=torch.cat([f.leaf_node + nodes for f, nodes in zip(forests, last, strict=True)]),
        probe_node=torch.cat([f.probe_node + nodes for f, nodes in zip(forests, last, strict=True)]),
        probe_start=torch.cat(
            [_start(f.probe_start, nodes) for f, nodes in zip(forests, before, strict=True)]
        ),
        parts=forests[0].parts,
    )


def _level(levels: Sequence[Level], above: Sequence[Tensor], roots: Sequence[Tensor]) -> Level:
    """One level of all; `above` and `roots` are how many nodes of the level above, and how many roots, come
    before each part's own.
    """

    def column(name: str) -> Tensor:
        return torch.cat([getattr(level, name) for level in levels])

    stored = _before([torch.tensor(len(level.latents)) for level in levels])
    # A part that drew nothing at this step has no means, and nothing to train.
    means = [level.mean for level in levels if level.mean is not None]
    return Level(
        sigma=levels[0].sigma,
        parent=torch.cat([_moved(lv.parent, by) for lv, by in zip(levels, above, strict=True)]),
        root=torch.cat([lv.root + by for lv, by in zip(levels, roots, strict=True)]),
        end=column("end"),
        trained=column("trained"),
        k=column("k"),
        std=column("std"),
        log_prob=column("log_prob"),
        latents=column("latents"),
        row=torch.cat([_moved(lv.row, by) for lv, by in zip(levels, stored, strict=True)]),
        depth=column("depth"),
        mean=torch.cat(means) if means else None,
    )


def _before(counts: Sequence[Tensor]) -> list[Tensor]:
    """The sum of the counts before each."""
    return [total - count for total, count in zip(accumulate(counts), counts, strict=True)]


def _moved(rows: Tensor, by: Tensor) -> Tensor:
    """Row numbers further on; -1 stands for none."""
    return torch.where(rows < 0, rows, rows + by)


def _start(starts: Tensor, nodes: Tensor) -> Tensor:
    """(level, row) of each probe's start, with the rows counted after those of earlier forests."""
    return torch.stack([starts[:, 0], starts[:, 1] + nodes[starts[:, 0]]], 1)
