"""Forest: a rollout stored by level; at each noise level a batch of nodes and each node's parent.

Plain sampling is a forest of chains; branching methods are the same type with forks. A layout says beforehand
what grows: for every step, and for every role a node can have, which children it gets. All children of a node
share one network pass, so the passes of a rollout are the nodes that have children, and can be counted from
the layout alone.

Shapes: n nodes of a level, m of them with stored latents, B leaves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from thalweg.core.values import Condition, Prompt


@dataclass(frozen=True)
class Child:
    """One child of a node: drawn from the kernel or stepped by the solver, trained on or not."""

    stochastic: bool
    trained: bool = False
    role: int = 0
    """Which row of the next step's layout the child reads; roots have role 0."""


Layout = tuple[dict[int, tuple[Child, ...]], ...]
"""One entry a step: role -> children."""


def count_passes(layout: Layout) -> tuple[int, int, int]:
    """(network passes of the rollout, trained edges, leaves) of one root under the layout."""
    nodes, passes, trained = {0: 1}, 0, 0
    for step in layout:
        grown: dict[int, int] = {}
        for role, count in nodes.items():
            passes += count if step[role] else 0
            for child in step[role]:
                grown[child.role] = grown.get(child.role, 0) + count
                trained += count * child.trained
        nodes = grown
    return passes, trained, sum(nodes.values())


@dataclass(frozen=True)
class Level:
    """The nodes of one noise level and the edge that led to each from the level above."""

    sigma: float
    parent: Int64[Tensor, " n"]
    """Row in the level above; at the roots, -1."""
    trained: Bool[Tensor, " n"]
    """The edge into the node is trained on."""
    k: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    log_prob: Float[Tensor, " n"]
    """log p(node | parent), a mean over latent elements; NaN on edges that are not trained."""
    latents: Float[Tensor, "m ..."]
    """States of those nodes that start or end a trained edge, and of leaves."""
    row: Int64[Tensor, " n"]
    """Row of the node in `latents`, or -1 where nothing is stored."""
    depth: Int64[Tensor, " n"]
    """How many forks lie above the node."""


@dataclass(frozen=True)
class Leaves:
    """Identity of the finished samples: integer columns, one entry a leaf."""

    prompt_slot: Int64[Tensor, " B"]
    seed_group: Int64[Tensor, " B"]
    fork_step: Int64[Tensor, " B"]
    """Step of the last fork above the leaf, -1 without one."""
    sample: Int64[Tensor, " B"]
    """A number of its own for each leaf of the iteration, the same on any number of processes."""

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(frozen=True)
class Forest:
    """Everything a rollout leaves behind on one process."""

    levels: tuple[Level, ...]
    leaves: Leaves
    prompts: tuple[Prompt, ...]
    """The prompt of each condition row."""
    condition: Condition
    leaf_condition: Int64[Tensor, " B"]
    """Row of `condition` for each leaf."""

    @property
    def latents(self) -> Float[Tensor, "B ..."]:
        """Finished latents, in the order of the leaves."""
        last = self.levels[-1]
        return last.latents[last.row]

    @property
    def leaf_prompts(self) -> list[Prompt]:
        return [self.prompts[i] for i in self.leaf_condition.tolist()]

    def below(self, leaf_values: Float[Tensor, "B ..."]) -> list[Float[Tensor, "n ..."]]:
        """The mean of `leaf_values` over the leaves below each node, for every level.

        Children weigh by the number of leaves below them: the plain mean over descendants.
        """
        sums, counts = leaf_values, torch.ones(len(leaf_values), dtype=leaf_values.dtype)
        means = [leaf_values]
        for child, parent in zip(self.levels[:0:-1], self.levels[-2::-1], strict=True):
            size = len(parent.parent)
            sums = torch.zeros(size, *sums.shape[1:], dtype=sums.dtype).index_add(0, child.parent, sums)
            counts = torch.zeros(size, dtype=counts.dtype).index_add(0, child.parent, counts)
            means.append(sums / counts.view(-1, *[1] * (sums.ndim - 1)))
        return means[::-1]

    def first_leaf(self) -> list[Int64[Tensor, " n"]]:
        """The row of the first leaf below each node, for every level."""
        rows = torch.arange(len(self.leaves))
        firsts = [rows]
        for child, parent in zip(self.levels[:0:-1], self.levels[-2::-1], strict=True):
            size = len(parent.parent)
            rows = torch.full((size,), len(self.leaves)).scatter_reduce(0, child.parent, rows, "amin")
            firsts.append(rows)
        return firsts[::-1]
