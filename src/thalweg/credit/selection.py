"""Which of the collected rows are worth a pass, and how much each counts. Shapes: B rows, R rewards."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.processes import Processes
from thalweg.core.values import Paths, Samples, Transitions
from thalweg.credit.normalized import across, numbered
from thalweg.credit.step_weight import StepWeight, step_weights

Rows = Transitions | Samples | Paths


class DepthPrune(Part):
    """Leave out the steps of a window that moves from data to noise (BranchGRPO, arXiv:2509.06040)."""

    size: int = Field(default=4, ge=1)
    """How many steps are left out at a time."""
    start: int = Field(ge=0)
    """First step of the first window."""
    stop: int = Field(ge=0)
    """First step of the last one."""
    every: int = Field(default=30, ge=1)
    """Iterations before the window moves one step towards noise."""

    @model_validator(mode="after")
    def _towards_noise(self) -> "DepthPrune":
        if self.stop > self.start:
            raise ValueError(f"stop={self.stop} lies after start={self.start}; the window moves towards 0")
        return self

    def first(self, iteration: int) -> int:
        """The window's first step in an iteration."""
        return max(self.start - iteration // self.every, self.stop)


class Selection(Part):
    """The `selection` section of a recipe. Rewards and advantages are those of all samples, kept or not."""

    drop_zero: bool = True
    """Do not train on rows whose every advantage is 0: they carry no signal. False keeps them for their
    regulariser.
    """
    best_of: int | None = Field(default=None, ge=2)
    """Train on this many samples of each prompt, half those with the highest, half with the lowest advantage
    (DanceGRPO: 8 of 24); None: on all.
    """
    trained_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each sample's steps that is trained on, drawn anew for every sample (DanceGRPO: 0.6)."""
    sigma_min: float = Field(default=0.0, ge=0, lt=1)
    """Train on steps that start at this noise level or above (OP-GRPO: 0.5 to 0.6)."""
    depth_prune: DepthPrune | None = None
    """Leave out some steps."""
    width_prune: Literal["none", "better_half", "extremes"] = "none"
    """Below the last fork of a tree: train on the better half of every set of siblings, or on the best and
    the worst quarter of a tree's samples (BranchGRPO).
    """
    step_weight: StepWeight = "uniform"
    """How trained steps count against each other."""
    equal_levels: bool = False
    """Every step of a tree counts the same however many edges it has; else every edge does."""

    def select(
        self,
        rows: Rows,
        *,
        seed: int,
        iteration: int,
        processes: Processes = Processes(),  # noqa: B008  (frozen)
    ) -> Rows:
        """The rows worth a pass, weighed by step."""
        keep = (rows.advantages != 0).any(1) if self.drop_zero else torch.ones(len(rows), dtype=torch.bool)
        if self.best_of is not None:
            keep &= self._extreme(rows, self.best_of, processes)
        if self.trained_fraction < 1:
            keep &= self._drawn(rows, seed, iteration)
        if isinstance(rows, Transitions):
            keep &= self.keeps_step(rows.step, rows.sigma, iteration)
            if self.width_prune != "none":
                keep &= self._wide(rows)
            # Before any row is dropped: which ones are differs between processes.
            weight = rows.weight * step_weights(self.step_weight, rows, processes)
            if self.equal_levels and len(rows):
                level = numbered(rows.prompt_slot, rows.seed_group, rows.step)
                weight = weight / torch.bincount(level)[level]
            rows = replace(rows, weight=weight)
        return rows.index(keep)

    def keeps_step(
        self, step: Int64[Tensor, " B"], sigma: Float[Tensor, " B"], iteration: int
    ) -> Bool[Tensor, " B"]:
        """Whether steps are trained on, by their number and the noise level they start at."""
        keep = sigma >= self.sigma_min
        if self.depth_prune is None:
            return keep
        behind = step - self.depth_prune.first(iteration)
        return keep & ((behind < 0) | (behind >= self.depth_prune.size))

    def _extreme(self, rows: Rows, count: int, processes: Processes) -> Bool[Tensor, " B"]:
        """Rows of the samples of each prompt with the highest and the lowest advantages, ties by number."""
        columns = {"sample": rows.sample, "prompt": rows.prompt_slot, "advantage": rows.advantages.sum(1)}
        everyone, _ = across(processes, columns)
        samples, which = torch.unique(everyone["sample"], return_inverse=True)
        size = torch.bincount(which).double()
        value = torch.zeros(len(samples)).double().index_add(0, which, everyone["advantage"].double()) / size
        prompt = torch.zeros_like(samples).scatter(0, which, everyone["prompt"])
        kept = []
        for slot in prompt.unique().tolist():
            own = (prompt == slot).nonzero().flatten()
            order = own[value[own].argsort(stable=True)]
            lowest = count // 2
            kept.append(order[:lowest])
            kept.append(order[max(lowest, len(order) - (count - lowest)) :])
        chosen = samples[torch.cat(kept)] if kept else samples
        return torch.isin(rows.sample, chosen)

    def _wide(self, rows: Transitions) -> Bool[Tensor, " B"]:
        """Rows above the last fork, and those below it that are kept."""
        keep = torch.ones(len(rows), dtype=torch.bool)
        value = rows.advantages.sum(1)
        tree = numbered(rows.prompt_slot, rows.seed_group) if len(rows) else rows.step
        for number in tree.unique().tolist():
            last = (tree == number) & (rows.depth == rows.depth[tree == number].max())
            first = last & (rows.step == rows.step[last].min())
            at = first.nonzero().flatten()
            if self.width_prune == "better_half":
                families = [at[rows.parent[at] == p] for p in rows.parent[at].unique()]
                kept = [
                    own[value[own].argsort(descending=True, stable=True)][: max(len(own) // 2, 1)]
                    for own in families
                ]
            else:
                order = at[value[at].argsort(stable=True)]
                quarter = max(len(order) // 4, 1)
                kept = [order[:quarter], order[-quarter:]]
            keep &= ~last | torch.isin(rows.sample, rows.sample[torch.cat(kept)])
        return keep

    def _drawn(self, rows: Rows, seed: int, iteration: int) -> Bool[Tensor, " B"]:
        keep = torch.zeros(len(rows), dtype=torch.bool)
        samples, sizes = torch.unique(rows.sample, return_counts=True)
        by_sample = rows.sample.argsort(stable=True).split(sizes.tolist())
        for sample, own in zip(samples.tolist(), by_sample, strict=True):
            order = Address(seed, "selection", iteration, path=(sample,)).permutation(len(own))
            keep[own[order[: max(1, int(self.trained_fraction * len(own)))]]] = True
        return keep
