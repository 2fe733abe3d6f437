"""Trained edges of a forest as rows. Shapes: B rows, R rewards, ... latent axes."""

import torch
from jaxtyping import Bool
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.values import Transitions


def transitions(forest: Forest, advantages: Advantages) -> Transitions:
    """Every trained edge, from noise to data."""
    firsts = forest.first_end()
    columns: dict[str, list[Tensor]] = {}
    for at, (before, level) in enumerate(zip(forest.levels[:-1], forest.levels[1:], strict=True)):
        node = level.trained.nonzero().flatten()
        root = level.root[node]
        edge = {
            "x": before.latents[before.row[level.parent[node]]],
            "x_next": level.latents[level.row[node]],
            "sigma": before.sigma[level.parent[node]],
            "sigma_next": level.sigma[node],
            "k": level.k[node],
            "std": level.std[node],
            "old_log_prob": level.log_prob[node],
            "behaviour_log_prob": level.log_prob[node],
            "advantages": advantages.levels[at + 1][node],
            "weight": torch.ones(len(node)),
            "condition": forest.roots.condition[root],
            "prompt_slot": forest.roots.prompt_slot[root],
            "seed_group": forest.roots.seed_group[root],
            "sample": firsts[at + 1][node],
            "step": torch.full((len(node),), at),
            "depth": level.depth[node],
            "parent": firsts[at][level.parent[node]],
        }
        if level.mean is not None:
            edge["old_mean"] = level.mean
        for name, column in edge.items():
            # A level without trained edges keeps no means.
            if len(node) or name != "old_mean":
                columns.setdefault(name, []).append(column)
    return Transitions(**{name: torch.cat(parts) for name, parts in columns.items()})


def on_best_way(forest: Forest, advantages: Advantages) -> Bool[Tensor, " B"]:
    """Which trained edges lead to the best sample of their tree, in the order of `transitions`."""
    last, best = forest.levels[-1], torch.zeros(len(forest.levels[-1].parent), dtype=torch.bool)
    value, root = advantages.leaves.sum(1), last.root[forest.leaf_node]
    for tree in root.unique().tolist():
        own = (root == tree).nonzero().flatten()
        best[forest.leaf_node[own[value[own].argmax()]]] = True
    ways = [best]
    for child, before in zip(forest.levels[:0:-1], forest.levels[-2::-1], strict=True):
        best = torch.zeros(len(before.parent), dtype=torch.bool).index_fill(0, child.parent[best], True)
        ways.append(best)
    return torch.cat([way[level.trained] for way, level in zip(ways[-2::-1], forest.levels[1:], strict=True)])
