"""What a reward gradient asks of a route. Shapes: B rows, S states, M noise levels, ... latent axes."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address
from thalweg.core.values import Paths
from thalweg.objectives.contract import VelocityField

Sample = tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]
"""Finished latents with a gradient to the weights, and how much each counts in the loss."""


@runtime_checkable
class RouteContract(Protocol):
    def paths(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        """Where the ways begin, one or several a sample."""
        ...

    def passes(self, steps: int) -> tuple[int, int]:
        """Network passes of a sample of so many steps: with gradient, and others."""
        ...

    def follow(self, field: VelocityField, rows: Paths) -> Sample:
        """Walk, with gradient."""
        ...


def draws(forest: Forest, seed: int, iteration: int) -> list[Address]:
    """An address for each leaf's own choices."""
    leaves = forest.leaves
    columns = (leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.sample.tolist())
    return [Address(seed, "selection", iteration, p, g, (5, s)) for p, g, s in zip(*columns, strict=True)]


def levels_of(forest: Forest) -> Float[Tensor, " M"]:
    """The noise levels of the rollout, from noise to data."""
    return torch.tensor([level.sigma for level in forest.levels])


def paths_of(
    forest: Forest,
    advantages: Advantages,
    states: Sequence[Float[Tensor, "B S ..."]],
    sigmas: Sequence[Float[Tensor, "B M"]],
) -> Paths:
    """Rows of each leaf: entry i of the lists holds the i-th row of every leaf; its rows side by side."""
    times, leaves = len(states), forest.leaves
    owner = torch.arange(len(leaves)).repeat_interleave(times)
    return Paths(
        states=torch.stack(list(states), 1).flatten(0, 1),
        sigmas=torch.stack(list(sigmas), 1).flatten(0, 1),
        advantages=advantages.leaves[owner],
        weight=torch.ones(len(owner)),
        condition=forest.leaf_condition[owner],
        prompt_slot=leaves.prompt_slot[owner],
        seed_group=leaves.seed_group[owner],
        sample=leaves.sample[owner],
        step=torch.arange(times).repeat(len(leaves)),
    )
