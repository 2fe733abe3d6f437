"""One forest, grown in shares: its roots split, and what grew from each part joined again.

Draws have addresses, so a root grows into the same tree wherever it stands, and the joined forest is the one
that all roots would have given together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from thalweg.core import join
from thalweg.core.forest import Forest
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
    of_whole = [
        replace(f, roots=replace(f.roots, condition=torch.tensor(share.rows)[f.roots.condition]))
        for f, share in zip(forests, shares, strict=True)
    ]
    return replace(join.joined(of_whole), prompts=tuple(prompts), condition=condition)
