"""Credit along a tree: every edge has the worth of what lies below it (TreeGRPO, arXiv:2512.08153;
BranchGRPO,
arXiv:2509.06040; Dynamic-TreeRPO, arXiv:2509.23352). Shapes: n nodes of a level, B leaves, R rewards.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.dense import weighted
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized, across, normalise, numbered

Aggregate = Literal["mean", "max", "log_prob"]


class TreeCredit(Normalized):
    """One number an edge. With a single fork both ways are group credit."""

    kind: Literal["tree"] = "tree"
    normalize_at: Literal["leaves", "step"] = "leaves"
    """Normalise the samples of a prompt and carry advantages up (TreeGRPO); or carry rewards up and normalise
    the nodes of a prompt at each step (BranchGRPO).
    """
    aggregate: Aggregate = "mean"
    """What a node is worth: the mean over its samples, the best of them, or the mean over children weighed by
    softmax of the log-probs of their steps. The last counts the density twice, since children are drawn from
    it; TreeGRPO publishes it.
    """
    combine: Literal["sum_rewards", "sum_advantages"] = "sum_rewards"
    """Several rewards: weigh and add before normalising, or, at the leaves, after it."""

    @model_validator(mode="after")
    def _consistent(self) -> "TreeCredit":
        if self.normalize_at == "step" and self.combine == "sum_advantages":
            raise ValueError(
                "normalize_at=step carries rewards up the tree, so they are added before; use "
                "combine=sum_rewards, or normalize_at=leaves"
            )
        return self

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's edges, and of its samples."""
        group = GroupCredit.like(self, self.combine)
        of_leaves = group.of_leaves(forest, scores, weights, processes)
        if self.normalize_at == "leaves":
            return Advantages(levels=aggregate(forest, of_leaves, self.aggregate), leaves=of_leaves)
        reward = weighted(scores.leaves, weights)
        values = aggregate(forest, reward[:, None], self.aggregate)
        levels = []
        for at, (level, value) in enumerate(zip(forest.levels, values, strict=True)):
            columns = {"prompt": forest.roots.prompt_slot[level.root], "value": value[:, 0]}
            everyone, mine = across(processes, columns)
            group_of = numbered(everyone["prompt"]) if len(everyone["prompt"]) else everyone["prompt"]
            found = normalise(self, everyone["value"], group_of, everyone["value"].isfinite())
            levels.append(found[mine][:, None].float() if at else torch.full((len(value), 1), torch.nan))
        return Advantages(levels=tuple(levels), leaves=of_leaves)

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group."""
        return numbered(leaves.prompt_slot)


def aggregate(
    forest: Forest, leaf_values: Float[Tensor, "B R"], how: Aggregate
) -> tuple[Float[Tensor, "_ R"], ...]:
    """What every node is worth by the samples below it, NaN without one."""
    if how == "mean":
        return forest.below(leaf_values)
    last = forest.levels[-1]
    value = leaf_values.new_full((len(last.parent), leaf_values.shape[1]), torch.nan)
    value[forest.leaf_node] = leaf_values
    values = [value]
    for child, parent in zip(forest.levels[:0:-1], forest.levels[-2::-1], strict=True):
        size, known = len(parent.parent), value.isfinite().all(1)
        above, below = child.parent[known], value[known]
        if how == "max":
            value = value.new_full((size, value.shape[1]), -torch.inf)
            value = value.scatter_reduce(0, above[:, None].expand_as(below), below, "amax")
            value = torch.where(value.isinf(), torch.nan, value)
        else:
            # Steps that are not drawn have no log-prob; they have no sibling either.
            log_prob = child.log_prob[known].nan_to_num(nan=0.0).double()
            highest = torch.full((size,), -torch.inf, dtype=torch.float64).scatter_reduce(
                0, above, log_prob, "amax"
            )
            weight = (log_prob - highest[above]).exp().to(value.dtype)[:, None]
            total = weight.new_zeros(size, 1).index_add(0, above, weight)
            value = value.new_zeros(size, value.shape[1]).index_add(0, above, weight * below) / total
        values.append(value)
    return tuple(values[::-1])
