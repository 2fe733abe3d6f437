"""Leaves and their ways as rows of a pathwise objective. Shapes: B leaves or rows, S states, M noise levels
of a row or of the rollout, R rewards, ... latent axes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address
from thalweg.core.values import Paths


def draws(forest: Forest, seed: int, iteration: int) -> list[Address]:
    """An address for each leaf's own choices."""
    leaves = forest.leaves
    columns = (leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.sample.tolist())
    return [Address(seed, "selection", iteration, p, g, (5, s)) for p, g, s in zip(*columns, strict=True)]


def levels_of(forest: Forest) -> Float[Tensor, " M"]:
    """The noise levels of the rollout, from noise to data, where all its samples go through the same ones."""
    return forest.sigmas[0] if len(forest.leaves) else torch.zeros(len(forest.levels))


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
