"""Credit over steps and over rewards at once, OTCA (arXiv:2604.19234).

    A_ij = w_ij * sum over rewards k of c_ik A_ik

w_ij, the progress of step j: max(cos(x_{j+1}, x_N) - cos(x_j, x_N), 0) + epsilon, scaled to mean 1 over the
trained steps. c_i on the simplex: a share `exploration` of equal weights, and the weights that make
(sum over k of c_k A_k)² least: rewards that disagree cancel, and where all agree the most cautious one
counts.
Our reading: the paper's exact weights are not public. w depends on the noise of the step itself, which would
bias credit; so by default it is averaged over the samples of a prompt.
Shapes: n nodes of a level, B leaves, R rewards.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized, across, numbered


class ObjectiveAwareCredit(Normalized):
    """One number an edge, of several rewards."""

    kind: Literal["objective_aware"] = "objective_aware"
    exploration: float = Field(default=0.5, ge=0, le=1)
    """m: the share of equal weights."""
    progress_epsilon: PositiveFloat = 1e-3
    """What a step without progress counts."""
    weigh_steps: Literal["prompt", "sample", "none"] = "prompt"
    """Progress averaged over the samples of a prompt, each sample's own, or not used."""

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's edges; samples have those without step weights."""
        group = GroupCredit.like(self, combine="separate")
        terms = group.of_leaves(forest, scores, weights, processes)
        leaves = (self.shares(terms) * terms).sum(1, keepdim=True)
        values = forest.below(leaves)
        if self.weigh_steps == "none":
            return Advantages(levels=values, leaves=leaves)
        progress = self._progress(forest)
        if self.weigh_steps == "prompt":
            progress = [self._by_prompt(forest, at, progress[at], processes) for at in range(len(progress))]
        total, count = torch.zeros(len(leaves)), torch.zeros(len(leaves))
        for at, level in enumerate(forest.levels):
            trained = of_ancestor(forest, at, level.trained.float())
            total, count = total + trained * of_ancestor(forest, at, progress[at]), count + trained
        scale = forest.below((count / total)[:, None])
        return Advantages(
            levels=tuple(
                value * (progress[at] * scale[at][:, 0])[:, None] for at, value in enumerate(values)
            ),
            leaves=leaves,
        )

    def shares(self, advantages: Float[Tensor, "B R"]) -> Float[Tensor, "B R"]:
        """c of every sample."""
        size = advantages.abs()
        agree = (advantages > 0).all(1) | (advantages < 0).all(1)
        # Where all agree, all weight on the least; else weights that cancel: each side's share is the
        # other's size.
        least = torch.nn.functional.one_hot(size.argmin(1), advantages.shape[1]).to(advantages.dtype)
        high, low = (
            advantages.clamp(min=0).sum(1, keepdim=True),
            (-advantages).clamp(min=0).sum(1, keepdim=True),
        )
        ups, downs = (advantages > 0).to(advantages.dtype), (advantages < 0).to(advantages.dtype)
        cancel = low * ups + high * downs
        zero = (advantages == 0).to(advantages.dtype)
        cancel = torch.where(zero.any(1, keepdim=True), zero, cancel)
        cancel = cancel / cancel.sum(1, keepdim=True).clamp(min=torch.finfo(cancel.dtype).tiny)
        cautious = torch.where(agree[:, None], least, cancel)
        return (1 - self.exploration) * cautious + self.exploration / advantages.shape[1]

    def _progress(self, forest: Forest) -> list[Float[Tensor, " _"]]:
        """Of every edge; `progress_epsilon` on those that are not trained."""
        finals = [torch.full((len(level.parent),), -1) for level in forest.levels]
        finals[-1][forest.leaf_node] = torch.arange(len(forest.leaves))
        for child, at in zip(forest.levels[:0:-1], range(len(forest.levels) - 2, -1, -1), strict=True):
            finals[at] = finals[at].scatter_reduce(0, child.parent, finals[at + 1], "amax")
        end = forest.latents.flatten(1).double().cpu()
        progress = [torch.full((len(forest.levels[0].parent),), self.progress_epsilon)]
        for before, level, final in zip(forest.levels[:-1], forest.levels[1:], finals[1:], strict=True):
            gain = torch.full((len(level.parent),), self.progress_epsilon)
            node = level.trained.nonzero().flatten()
            if len(node):
                goal = end[final[node]]
                x_next = level.latents[level.row[node]].flatten(1).double().cpu()
                x = before.latents[before.row[level.parent[node]]].flatten(1).double().cpu()
                cosine = torch.nn.functional.cosine_similarity
                gain[node] += (cosine(x_next, goal) - cosine(x, goal)).clamp(min=0).float()
            progress.append(gain)
        return progress

    def _by_prompt(
        self, forest: Forest, at: int, progress: Float[Tensor, " n"], processes: Processes
    ) -> Float[Tensor, " n"]:
        level = forest.levels[at]
        columns = {"progress": progress, "prompt": forest.roots.prompt_slot[level.root]}
        rows, mine = across(processes, columns | {"trained": level.trained.float()})
        group, trained = numbered(rows["prompt"]), rows["trained"]
        size = torch.zeros(int(group.max()) + 1).index_add(0, group, trained)
        mean = torch.zeros_like(size).index_add(0, group, trained * rows["progress"]) / size
        return mean[group][mine].nan_to_num(nan=self.progress_epsilon)

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group."""
        return numbered(leaves.prompt_slot)


def of_ancestor(forest: Forest, at: int, values: Float[Tensor, " n"]) -> Float[Tensor, " B"]:
    """For each leaf, the value of its ancestor at a level."""
    rows = forest.leaf_node
    for level in forest.levels[:at:-1]:
        rows = level.parent[rows]
    return values[rows]
