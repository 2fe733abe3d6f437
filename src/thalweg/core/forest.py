"""Forest: a rollout stored by level; at each noise level a batch of nodes and each node's parent.

Plain sampling is a forest of chains; branching methods are the same type with forks. A layout says beforehand
what grows: for every step, and for every role a node can have, which children it gets. All children of a node
share one network pass, so the passes of a rollout are the nodes that have children, and can be counted from
the layout alone.

A node without children ends: at the last level in a finished sample, a leaf, or in a probe, whose score tells
what the state it started from was worth; above it in a candidate that was judged and left.

Shapes: n nodes of a level, m of them with stored latents, B leaves, Q probes, r roots, M levels, R rewards.
"""

from dataclasses import dataclass, field, replace

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
    noise: float = 1.0
    """Factor on the kernel's noise level."""
    spread: float = 1.0
    """Factor on the standard deviation alone, in the draw and in the density."""
    probe: bool = False
    """Belongs to a deterministic side way that finishes as a probe, not as a sample."""


Layout = tuple[dict[int, tuple[Child, ...]], ...]
"""One entry a step: role -> children."""


def count_passes(layout: Layout) -> tuple[int, int, int]:
    """(network passes of the rollout, trained edges, leaves) of one root under the layout."""
    nodes, passes, trained = {(0, False): 1}, 0, 0
    for step in layout:
        grown: dict[tuple[int, bool], int] = {}
        for (role, _), count in nodes.items():
            passes += count if step[role] else 0
            for child in step[role]:
                at = (child.role, child.probe)
                grown[at] = grown.get(at, 0) + count
                trained += count * child.trained
        nodes = grown
    return passes, trained, sum(count for (_, is_probe), count in nodes.items() if not is_probe)


@dataclass(frozen=True)
class Roots:
    """The initial noises a forest grew from: integer columns, one entry a root."""

    prompt_slot: Int64[Tensor, " r"]
    seed_group: Int64[Tensor, " r"]
    condition: Int64[Tensor, " r"]
    """Row of the forest's condition and prompts."""

    def __len__(self) -> int:
        return len(self.condition)


@dataclass(frozen=True)
class Level:
    """The nodes of one noise level and the edge that led to each from the level above."""

    sigma: Float[Tensor, " n"]
    """The same for all nodes but where samples of several sizes have a schedule each."""
    parent: Int64[Tensor, " n"]
    """Row in the level above; at the roots, -1."""
    root: Int64[Tensor, " n"]
    """Row of the root that the node grew from."""
    end: Int64[Tensor, " n"]
    """A number of its own for each node without children, the same on any number of processes; else -1."""
    trained: Bool[Tensor, " n"]
    """The edge into the node is trained on."""
    k: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    log_prob: Float[Tensor, " n"]
    """log p(node | parent), a mean over latent elements; NaN on edges that are not trained."""
    latents: Float[Tensor, "m ..."]
    """States of those nodes that start or end a trained edge, and of ends."""
    row: Int64[Tensor, " n"]
    """Row of the node in `latents`, or -1 where nothing is stored."""
    depth: Int64[Tensor, " n"]
    """How many forks lie above the node."""
    mean: Float[Tensor, "t ..."] | None = None
    """Means of the t trained edges under the behaviour weights, where the objective asks for them."""


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
class Advantages:
    """A number for every edge of a forest and every loss term, NaN where an edge has none."""

    levels: tuple[Float[Tensor, "_ R"], ...]
    """An edge is found at the node it leads to."""
    leaves: Float[Tensor, "B _"]
    """Of the finished samples, for objectives that see no edges; they may have fewer loss terms."""
    regions: Float[Tensor, "B _ ..."] | None = None
    """How much each latent element of a sample counts for each loss term; None: all alike."""
    corrected: Float[Tensor, "B ..."] | None = None
    """What a sample should have been, where the credit says so; NaN where it does not."""
    corrected_regions: Float[Tensor, "B ..."] | None = None
    """How much each latent element of a corrected sample counts; None: as in `regions`."""


@dataclass(frozen=True)
class Scores:
    """Rewards by name, as far as they were asked for; NaN where there is none."""

    leaves: dict[str, Float[Tensor, " B"]]
    steps: dict[str, tuple[Float[Tensor, " _"], ...]] = field(default_factory=dict)
    """Of the states in the middle of denoising, for every level."""
    probes: dict[str, Float[Tensor, " Q"]] = field(default_factory=dict)
    marks: Float[Tensor, "B 1 H W"] | None = None
    """1 at the pixels of each sample that are to blame, 0 elsewhere; where the credit asks for them."""


@dataclass(frozen=True)
class Forest:
    """Everything a rollout leaves behind on one process."""

    levels: tuple[Level, ...]
    roots: Roots
    leaves: Leaves
    prompts: tuple[Prompt, ...]
    """The prompt of each condition row."""
    condition: Condition
    leaf_node: Int64[Tensor, " B"]
    """Row of each leaf in the last level."""
    probe_node: Int64[Tensor, " Q"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Row of each probe in the last level."""
    probe_start: Int64[Tensor, "Q 2"] = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    """Level and row of the node that each probe tells the worth of."""
    parts: tuple[int, ...] = (0,)
    """Latent elements of each part of a state, where the model tells several apart."""
    iteration: int = 0
    """Of the run, in which it grew."""
    attention: Float[Tensor, "B ..."] | None = None
    """How much attention each element of a leaf was paid on its way, a mean over the steps that are noted
    (`rollout.attention`), on the CPU; NaN at elements that are not looked at. None where nothing is noted.
    """
    starts: Float[Tensor, "B ..."] | None = None
    """The noise that each leaf comes from, where some leaves were given and their noise was worked out."""

    @property
    def latents(self) -> Float[Tensor, "B ..."]:
        """Finished latents, in the order of the leaves."""
        return self._finished(self.leaf_node)

    @property
    def paths(self) -> Float[Tensor, "B M ..."]:
        """The states of each leaf's way, from noise to data; where the rollout kept them all."""
        node, states = self.leaf_node, list[Tensor]()
        for level in self.levels[::-1]:
            states.append(level.latents[level.row[node].to(level.latents.device)])
            node = level.parent[node]
        return torch.stack(states[::-1], 1)

    @property
    def sigmas(self) -> Float[Tensor, "B M"]:
        """The noise levels of each leaf's way, from noise to data."""
        node, sigmas = self.leaf_node, list[Tensor]()
        for level in self.levels[::-1]:
            sigmas.append(level.sigma[node])
            node = level.parent[node]
        return torch.stack(sigmas[::-1], 1)

    @property
    def probe_latents(self) -> Float[Tensor, "Q ..."]:
        return self._finished(self.probe_node)

    @property
    def leaf_condition(self) -> Int64[Tensor, " B"]:
        """Row of `condition` for each leaf."""
        return self.roots.condition[self.levels[-1].root[self.leaf_node]]

    @property
    def leaf_prompts(self) -> list[Prompt]:
        return [self.prompts[i] for i in self.leaf_condition.tolist()]

    @property
    def probe_prompts(self) -> list[Prompt]:
        rows = self.roots.condition[self.levels[-1].root[self.probe_node]]
        return [self.prompts[i] for i in rows.tolist()]

    def to(self, device: torch.device) -> "Forest":
        """With its states there; columns stay on the CPU."""
        moved = (
            replace(
                level,
                latents=level.latents.to(device),
                mean=None if level.mean is None else level.mean.to(device),
            )
            for level in self.levels
        )
        starts = None if self.starts is None else self.starts.to(device)
        return replace(self, levels=tuple(moved), starts=starts)

    def below(self, leaf_values: Float[Tensor, "B ..."]) -> tuple[Float[Tensor, "_ ..."], ...]:
        """The mean of `leaf_values` over the leaves below each node, for every level; NaN without a leaf.

        Children weigh by the number of leaves below them: the plain mean over descendants. A leaf whose value
        is not finite counts as none.
        """
        size, inside = len(self.levels[-1].parent), leaf_values.shape[1:]
        known = leaf_values.isfinite()
        sums = leaf_values.new_zeros(size, *inside)
        sums = sums.index_add(0, self.leaf_node, torch.where(known, leaf_values, 0))
        counts = leaf_values.new_zeros(size, *inside).index_add(0, self.leaf_node, known.to(leaf_values))
        means = [sums / counts]
        for child, parent in zip(self.levels[:0:-1], self.levels[-2::-1], strict=True):
            size = len(parent.parent)
            sums = sums.new_zeros(size, *inside).index_add(0, child.parent, sums)
            counts = counts.new_zeros(size, *inside).index_add(0, child.parent, counts)
            means.append(sums / counts)
        return tuple(means[::-1])

    def advantages(self, leaf_values: Float[Tensor, "B R"]) -> Advantages:
        """Of samples for all their edges alike: an edge has the mean over the samples below it."""
        return Advantages(levels=self.below(leaf_values), leaves=leaf_values)

    def first_end(self) -> tuple[Int64[Tensor, " _"], ...]:
        """The lowest number of the ends below each node, for every level: a name for its way."""
        highest = torch.iinfo(torch.int64).max
        firsts: list[Tensor] = []
        for at in range(len(self.levels) - 1, -1, -1):
            level = self.levels[at]
            first = torch.where(level.end >= 0, level.end, highest)
            if firsts:
                first = first.scatter_reduce(0, self.levels[at + 1].parent, firsts[-1], "amin")
            firsts.append(first)
        return tuple(firsts[::-1])

    def _finished(self, nodes: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        last = self.levels[-1]
        return last.latents[last.row[nodes].to(last.latents.device)]
