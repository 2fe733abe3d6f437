"""Credit of a finished sample for all its steps alike: how much better it is than its group
(`credit.normalized`). Shapes: B samples of all processes, R rewards.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.normalized import Normalized, across, normalise, numbered

Key = Literal["prompt", "seed", "fork"]
Combine = Literal["sum_rewards", "sum_advantages", "separate"]


class GroupCredit(Normalized):
    """One number a sample; an edge has the mean over the samples below it."""

    kind: Literal["group"] = "group"
    group_by: tuple[Key, ...] = ("prompt",)
    """What the samples of a group have in common: the prompt, also the initial noise, also the step of the
    fork.
    """
    combine: Combine = "sum_rewards"
    """Several rewards: weigh and add before normalising; after it; or keep one column and one loss term
    each.
    """

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's edges and samples."""
        return forest.advantages(self.of_leaves(forest, scores, weights, processes))

    def of_leaves(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Float[Tensor, "b R"]:
        """Advantages of this process's samples, among those of all processes."""
        weights = {name: weight for name, weight in weights.items() if name in scores.leaves}
        everyone, mine = across(processes, vars(forest.leaves) | scores.leaves)
        leaves = Leaves(**{name: everyone.pop(name) for name in vars(forest.leaves)})
        return self.advantages(everyone, weights, leaves)[mine]

    def advantages(
        self, rewards: Mapping[str, Float[Tensor, " B"]], weights: Mapping[str, float], leaves: Leaves
    ) -> Float[Tensor, "B R"]:
        """One column, or with `separate` one a reward."""
        group = self.groups(leaves)
        columns = torch.stack([rewards[name].double() for name in weights])
        scale = torch.tensor(list(weights.values()), dtype=torch.float64)[:, None]
        # A sample without one of its rewards is invalid for all of them.
        valid = columns.isfinite().all(0)
        if self.combine == "sum_rewards":
            return normalise(self, (columns * scale).sum(0), group, valid)[:, None].float()
        # Weights act on the advantages; a reward's own scale is divided out.
        terms = scale * torch.stack([normalise(self, column, group, valid) for column in columns])
        if self.combine == "sum_advantages":
            return terms.sum(0)[:, None].float()
        return terms.T.float()

    @classmethod
    def like(cls, how: Normalized, combine: Combine = "sum_rewards") -> "GroupCredit":
        """With the statistics of another credit."""
        return cls(**{name: getattr(how, name) for name in Normalized.model_fields}, combine=combine)

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group, 0 .. groups - 1."""
        columns = {"prompt": leaves.prompt_slot, "seed": leaves.seed_group, "fork": leaves.fork_step}
        return numbered(*(columns[key] for key in self.group_by))
