"""Credit of a step by a reward of the noisy state it leads to, beside that of the finished sample (Euphonium,
arXiv:2602.04928; Step-GRPO, arXiv:2605.25661). Shapes: n nodes of a level, B leaves.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.dense import weighted
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized, across, normalise, numbered


class ProcessCredit(Normalized):
    """Two numbers an edge, each a loss term of its own: outcome and process; a weight of 0 leaves one out."""

    kind: Literal["process"] = "process"
    outcome_weight: float = Field(default=1.0, ge=0)
    """Of the group-normalised reward of the finished sample, the same for all its steps."""
    process_weight: float = Field(default=1.0, ge=0)
    """Of the normalised reward of the state the step leads to."""
    compare: Literal["prompt", "siblings"] = "prompt"
    """With whom a state is compared: those of the prompt at the same step; or those drawn from one state."""
    sigma_max: float = Field(default=1.0, gt=0, le=1)
    """Steps into noisier states have process credit 0: a judge knows least of the noisiest."""

    @model_validator(mode="after")
    def _credits_something(self) -> "ProcessCredit":
        if self.num_terms == 0:
            raise ValueError("outcome_weight and process_weight are both 0; give one of them a weight")
        return self

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's edges; samples have those of their reward."""
        group = GroupCredit.like(self)
        if scores.leaves:
            leaves = group.of_leaves(forest, scores, weights, processes)
        else:
            leaves = torch.zeros(len(forest.leaves), 1)
        outcomes, firsts = forest.below(leaves), forest.first_end()
        levels = [torch.full((len(forest.levels[0].parent), self.num_terms), torch.nan)]
        for at in range(1, len(forest.levels)):
            level = forest.levels[at]
            columns = []
            if self.outcome_weight:
                columns.append(self.outcome_weight * outcomes[at].nan_to_num(nan=0.0))
            if self.process_weight:
                reward = weighted({name: levels[at] for name, levels in scores.steps.items()}, weights)
                key = {
                    "prompt": forest.roots.prompt_slot[level.root],
                    "siblings": firsts[at - 1][level.parent],
                }[self.compare]
                judged = level.trained & (level.sigma <= self.sigma_max)
                reward = torch.where(judged, reward, torch.nan)
                rows, mine = across(processes, {"reward": reward, "key": key})
                found = normalise(self, rows["reward"], numbered(rows["key"]), rows["reward"].isfinite())
                columns.append(self.process_weight * found[mine][:, None].float())
            levels.append(torch.cat(columns, 1))
        return Advantages(levels=tuple(levels), leaves=leaves)

    @property
    def num_terms(self) -> int:
        return (self.outcome_weight > 0) + (self.process_weight > 0)

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group."""
        return numbered(leaves.prompt_slot)
