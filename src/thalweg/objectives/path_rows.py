"""Trained edges of a forest as rows. Shapes: B rows, R rewards, ... latent axes."""

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Forest
from thalweg.core.values import Transitions


def transitions(forest: Forest, advantages: Float[Tensor, "B R"]) -> Transitions:
    """Every trained edge, from noise to data; its advantage is the mean over the leaves below it."""
    values, firsts = forest.below(advantages), forest.first_leaf()
    columns: dict[str, list[Tensor]] = {}
    for before, level, value, first in zip(
        forest.levels[:-1], forest.levels[1:], values[1:], firsts[1:], strict=True
    ):
        node = level.trained.nonzero().flatten()
        leaf = first[node]
        index = len(columns.get("step", ()))
        edge = {
            "x": before.latents[before.row[level.parent[node]]],
            "x_next": level.latents[level.row[node]],
            "sigma": torch.full((len(node),), before.sigma),
            "sigma_next": torch.full((len(node),), level.sigma),
            "k": level.k[node],
            "std": level.std[node],
            "old_log_prob": level.log_prob[node],
            "advantages": value[node],
            "weight": torch.ones(len(node)),
            "condition": forest.leaf_condition[leaf],
            "prompt_slot": forest.leaves.prompt_slot[leaf],
            "seed_group": forest.leaves.seed_group[leaf],
            "sample": forest.leaves.sample[leaf],
            "step": torch.full((len(node),), index),
            "depth": level.depth[node],
        }
        for name, column in edge.items():
            columns.setdefault(name, []).append(column)
    return Transitions(**{name: torch.cat(parts) for name, parts in columns.items()})
