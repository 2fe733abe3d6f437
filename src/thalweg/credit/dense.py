"""Credit of a step by what it gained, DenseGRPO (arXiv:2601.20218).

    gain_j = V(x_{j+1}) - V(x_j),      A_j = (gain_j - mean of the group) / std, for every step by itself

V(x) is the reward of the sample that the deterministic flow makes of x: the rollout's probes. Gains of a
trajectory add up to the reward of its sample minus the value of its initial noise.
Shapes: n nodes of a level, B leaves, Q probes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized, across, normalise, numbered


class DenseCredit(Normalized):
    """One number an edge; needs `rollout.probes`."""

    kind: Literal["dense"] = "dense"
    credit: Literal["gain", "return_to_go"] = "gain"
    """What the step gained; or what the sample is worth beyond the state the step left, V(x_N) - V(x_j)."""
    std_floor: float = Field(default=0.1, ge=0)
    """A step's standard deviation counts as at least this share of that of the finished samples' rewards:
    late steps gain next to nothing, and dividing by that would magnify noise. Not in the paper.
    """

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's edges; samples have those of their reward."""
        group = GroupCredit.like(self)
        finished = weighted(scores.leaves, weights)
        values = values_of(forest, finished, weighted(scores.probes, weights))
        final = forest.below(finished[:, None])
        everyone, _ = across(processes, {"reward": finished})
        known = everyone["reward"][everyone["reward"].isfinite()]
        floor = self.std_floor * float(known.std(correction=0)) if len(known) else 0.0
        levels = [torch.full((len(values[0]), 1), torch.nan)]
        of_edges = gains(forest, values if self.credit == "gain" else [v[:, 0] for v in final], values)
        for level, gain in zip(forest.levels[1:], of_edges[1:], strict=True):
            rows, mine = across(processes, {"gain": gain, "prompt": forest.roots.prompt_slot[level.root]})
            found = normalise(self, rows["gain"], numbered(rows["prompt"]), rows["gain"].isfinite(), floor)
            levels.append(found[mine][:, None].float())
        return Advantages(levels=tuple(levels), leaves=group.of_leaves(forest, scores, weights, processes))

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group."""
        return numbered(leaves.prompt_slot)


def values_of(
    forest: Forest, finished: Float[Tensor, " B"], probed: Float[Tensor, " Q"]
) -> tuple[Float[Tensor, " _"], ...]:
    """V of every node: its probe's score, or that of its samples where only deterministic steps follow."""
    values = [value[:, 0].clone() for value in forest.below(finished[:, None])]
    for (at, row), score in zip(forest.probe_start.tolist(), probed, strict=True):
        values[at][row] = score
    return tuple(values)


def gains(
    forest: Forest, after: Sequence[Float[Tensor, " _"]], before: Sequence[Float[Tensor, " _"]]
) -> tuple[Float[Tensor, " _"], ...]:
    """What each edge's end is worth beyond its start, at the level of the end; NaN on edges that are not
    trained: a probe's own way gains nothing.
    """
    found = [torch.full_like(before[0], torch.nan)]
    for at, level in enumerate(forest.levels[1:], start=1):
        gain = after[at] - before[at - 1][level.parent]
        found.append(torch.where(level.trained, gain, torch.nan))
    return tuple(found)


def weighted(scores: Mapping[str, Float[Tensor, " b"]], weights: Mapping[str, float]) -> Float[Tensor, " b"]:
    """The rewards that are there, added up with their weights, float64."""
    there = [scores[name].double() * weight for name, weight in weights.items() if name in scores]
    return torch.stack(there).sum(0)
