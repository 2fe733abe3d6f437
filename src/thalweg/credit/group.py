"""Group-normalised credit: how much better a sample is than its group (Shao et al. 2024, arXiv:2402.03300).

    A_i = (r_i - mean of the group) / (std + epsilon),      held in [-limit, limit]

Groups are told by integer identity, never by the text of a prompt. Statistics are float64 and cover the
samples of all processes. A reward that is not finite marks an invalid sample: it takes no part in statistics
and gets advantage 0. Shapes: B samples of all processes, R rewards.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from thalweg.core.forest import Leaves
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.values import Samples, Transitions
from thalweg.credit.step_weight import StepWeight, step_weights

Key = Literal["prompt", "seed", "fork"]
Rows = Transitions | Samples


class GroupCredit(Part):
    """One number a sample, the same for all its trained steps."""

    kind: Literal["group"] = "group"
    group_by: tuple[Key, ...] = ("prompt",)
    """What the samples of a group have in common: the prompt, also the initial noise, also the step of the
    fork.
    """
    std: Literal["group", "global", "none"] = "group"
    """Divide by the standard deviation of the group, by that over all groups, or not at all (Dr. GRPO)."""
    ddof: int = Field(default=0, ge=0, le=1)
    """0: population standard deviation; 1: unbiased."""
    epsilon: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""
    limit: float | None = Field(default=5.0, gt=0)
    """Largest size of an advantage."""
    combine: Literal["sum_rewards", "sum_advantages", "separate"] = "sum_rewards"
    """Several rewards: weigh and add before normalising; after it; or keep one column and one loss term
    each.
    """
    drop_zero: bool = True
    """Do not train on samples whose every advantage is 0: they carry no signal. False keeps them for their
    regulariser.
    """

    step_weight: StepWeight = "uniform"
    """How trained steps count against each other."""
    trained_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each sample's steps that is trained on, drawn anew for every sample (DanceGRPO: 0.6)."""

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
            return self._normalise((columns * scale).sum(0), group, valid)[:, None].float()
        # Weights act on the advantages; a reward's own scale is divided out.
        terms = scale * torch.stack([self._normalise(column, group, valid) for column in columns])
        if self.combine == "sum_advantages":
            return terms.sum(0)[:, None].float()
        return terms.T.float()

    def select(self, rows: Rows, *, seed: int, iteration: int) -> Rows:
        """The rows worth a pass, weighed by step."""
        keep = (rows.advantages != 0).any(1) if self.drop_zero else torch.ones(len(rows), dtype=torch.bool)
        if self.trained_fraction < 1:
            keep &= self._drawn(rows, seed, iteration)
        if isinstance(rows, Transitions):
            # Before any row is dropped: which ones are differs between processes.
            weight = rows.weight * step_weights(self.step_weight, rows.std, rows.step)
            rows = replace(rows, weight=weight)
        return rows.index(keep)

    def _drawn(self, rows: Rows, seed: int, iteration: int) -> Bool[Tensor, " B"]:
        keep = torch.zeros(len(rows), dtype=torch.bool)
        samples, sizes = torch.unique(rows.sample, return_counts=True)
        by_sample = rows.sample.argsort(stable=True).split(sizes.tolist())
        for sample, own in zip(samples.tolist(), by_sample, strict=True):
            order = Address(seed, "selection", iteration, path=(sample,)).permutation(len(own))
            keep[own[order[: max(1, int(self.trained_fraction * len(own)))]]] = True
        return keep

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        """A number for each sample's group, 0 .. groups - 1."""
        columns = {"prompt": leaves.prompt_slot, "seed": leaves.seed_group, "fork": leaves.fork_step}
        keys = torch.stack([columns[key] for key in self.group_by], 1)
        return torch.unique(keys, dim=0, return_inverse=True)[1]

    def _normalise(
        self, rewards: Float[Tensor, " B"], group: Int64[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        mean, std, spread = statistics(rewards, group, valid, self.ddof)
        centred = rewards - mean[group]
        if self.std == "group":
            centred = centred / (std[group] + self.epsilon)
        elif self.std == "global":
            whole = torch.zeros_like(group)
            centred = centred / (statistics(rewards, whole, valid, self.ddof)[1] + self.epsilon)
        # Last, because with epsilon = 0 a group of equal rewards divides by 0.
        centred = torch.where(valid & spread[group], centred, 0)
        return centred if self.limit is None else centred.clamp(-self.limit, self.limit)


def statistics(
    values: Float[Tensor, " B"], group: Int64[Tensor, " B"], valid: Bool[Tensor, " B"], ddof: int
) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"], Bool[Tensor, " g"]]:
    """Mean, standard deviation and whether there are different values, for each group's valid entries."""
    size = int(group.max()) + 1
    known = torch.where(valid, values, 0).double()

    def total(x: Tensor) -> Tensor:
        return torch.zeros(size, dtype=torch.float64).index_add(0, group, x.double())

    count = total(valid)
    mean = total(known) / count.clamp(min=1)
    squares = total(torch.where(valid, (known - mean[group]) ** 2, 0))
    std = (squares / (count - ddof).clamp(min=1)).sqrt()
    low = torch.full((size,), torch.inf, dtype=torch.float64).scatter_reduce(
        0, group, torch.where(valid, known, torch.inf), "amin"
    )
    high = torch.full((size,), -torch.inf, dtype=torch.float64).scatter_reduce(
        0, group, torch.where(valid, known, -torch.inf), "amax"
    )
    # Compared, not computed: the rounding of a mean would give equal rewards a tiny advantage.
    return mean, std, high > low
