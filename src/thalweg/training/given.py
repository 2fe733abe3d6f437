"""Samples that are given and not drawn: what offline and half-online preference learns from.

An embedded world draws pictures that are right, and the same ones spoiled in one thing; they stand first in
the group of their prompt and are judged and credited like the model's own. Where the objective reads the
noise that samples came from, or their path, that of a given one is worked out: noise of the last level before
data, and from there the flow, followed back (Diffusion-APO, arXiv:2605.07503, has the flow alone). Shapes: B
leaves, g given ones among them, M levels, ... latent axes.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Forest, Leaves, Level, Roots
from thalweg.core.noise import Address, normals
from thalweg.core.values import Condition
from thalweg.flow import LinearPath
from thalweg.flow.broadcast import over_latents
from thalweg.models import Policy
from thalweg.models.contract import ReadsImages
from thalweg.objectives import Forward
from thalweg.rollout import Root
from thalweg.rollout.grow import LEAVES_PER_ROOT
from thalweg.training.recipe.schema import Recipe
from thalweg.worlds import find_world


def inverts(recipe: Recipe) -> bool:
    """Whether the path of given samples is worked out."""
    return (
        bool(recipe.rollout.given)
        and isinstance(recipe.objective, Forward)
        and recipe.objective.noise in ("rollout", "path")
    )


@torch.no_grad()
def with_given(
    recipe: Recipe, policy: Policy, forest: Forest, roots: Sequence[Root], iteration: int
) -> Forest:
    """The forest with the given samples of these roots before its own leaves."""
    x0 = _pictures(recipe, policy, forest, roots, iteration)
    count, last = len(roots), forest.levels[-1]

    def first(new: Sequence[int], old: Tensor) -> Tensor:
        return torch.cat([torch.tensor(new, dtype=torch.int64), old])

    ends = [root.number * LEAVES_PER_ROOT for root in roots]
    leaves, condition = forest.leaves, [root.condition for root in roots]
    sigmas = recipe.rollout.sigmas(recipe.seed, iteration).tolist()
    levels = [
        _longer(level, count, sigmas[at], is_first=at == 0) for at, level in enumerate(forest.levels[:-1])
    ]
    levels.append(replace(_with(_longer(last, count, sigmas[-1]), x0), end=first(ends, last.end)))
    grown = replace(
        forest,
        levels=tuple(levels),
        roots=Roots(
            prompt_slot=first([root.prompt_slot for root in roots], forest.roots.prompt_slot),
            seed_group=first([root.seed_group for root in roots], forest.roots.seed_group),
            condition=first(condition, forest.roots.condition),
        ),
        leaves=Leaves(
            prompt_slot=first([root.prompt_slot for root in roots], leaves.prompt_slot),
            seed_group=first([root.seed_group for root in roots], leaves.seed_group),
            fork_step=first([-1] * count, leaves.fork_step),
            sample=first(ends, leaves.sample),
        ),
        leaf_node=first(range(count), forest.leaf_node + count),
    )
    if not inverts(recipe):
        return grown
    here = forest.condition.index(torch.tensor(condition, dtype=torch.int64))
    keys = [Address(recipe.seed, "initial", iteration, root.prompt_slot, root.seed_group) for root in roots]
    path = inverted(recipe, policy, x0, normals(keys, x0.shape[1:]).to(x0), here)
    assert isinstance(recipe.objective, Forward)
    if recipe.objective.noise == "path":
        ways = zip(grown.levels[:-1], path.unbind(1)[:-1], strict=True)
        return replace(grown, levels=(*(_with(level, x) for level, x in ways), grown.levels[-1]))
    own = zip(leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), strict=True)
    initial = normals([Address(recipe.seed, "initial", iteration, p, g) for p, g in own], x0.shape[1:])
    return replace(grown, starts=torch.cat([path[:, 0], initial.to(path)]))


def inverted(
    recipe: Recipe,
    policy: Policy,
    x0: Float[Tensor, "g ..."],
    noise: Float[Tensor, "g ..."],
    condition: Condition,
) -> Float[Tensor, "g M ..."]:
    """States, from noise to data, by which the flow of the rollout's weights may have led to these samples:
    Euler steps over the rollout's levels, backwards.

    The first goes by the noise, not by the flow: at σ = 0 a velocity knows no noise, and no rollout visits
    states without it.
    """
    levels = recipe.rollout.sigmas(recipe.seed, 0).flip(0)
    parts = [x0[:0, None].expand(-1, len(levels), *x0.shape[1:])]
    with policy.weights.use(recipe.rollout.weights):
        for rows in torch.arange(len(x0)).split(recipe.rollout.micro_batch):
            here = rows.to(x0.device)
            path = [x0[here], LinearPath().corrupt(x0[here], noise[here], levels[1].expand(len(rows)))]
            for sigma, noisier in pairwise(levels[1:]):
                velocity = policy.velocity(path[-1], sigma.expand(len(rows)), condition.index(rows))
                path.append(path[-1] + over_latents(noisier - sigma, path[-1]) * velocity)
            parts.append(torch.stack(path[::-1], 1))
    return torch.cat(parts)


def _pictures(
    recipe: Recipe, policy: Policy, forest: Forest, roots: Sequence[Root], iteration: int
) -> Float[Tensor, "g ..."]:
    """Latents of what the world draws. The n-th right picture and the n-th spoiled one of a prompt are drawn
    alike.
    """
    assert recipe.model.world is not None and isinstance(policy, ReadsImages)  # the recipe was checked
    world, kinds = find_world(recipe.model.world), recipe.rollout.given
    draws = {"right": world.draw, "spoiled": world.spoil}
    images = [torch.zeros(0, *world.image_shape)]
    for root in roots:
        kind = kinds[root.seed_group]
        turn = kinds[: root.seed_group].count(kind)
        rng = Address(recipe.seed, "given", iteration, root.prompt_slot, turn).generator()
        images.append(torch.from_numpy(draws[kind](forest.prompts[root.condition], rng)).float()[None])
    return policy.read(torch.cat(images))


def _with(level: Level, latents: Float[Tensor, "g ..."]) -> Level:
    """The level, whose first nodes are given ones, with their latents before its own."""
    count = len(latents)
    row = torch.where(level.row < 0, level.row, level.row + count)
    row[:count] = torch.arange(count)
    return replace(level, latents=torch.cat([latents.to(level.latents), level.latents]), row=row)


def _longer(level: Level, count: int, sigma: float, *, is_first: bool = False) -> Level:
    """The level with so many nodes before its own, of which nothing is known: the way of given samples."""

    def first(value: int | float, column: Tensor) -> Tensor:
        return torch.cat([column.new_full((count,), value), column])

    own = torch.arange(count)
    return replace(
        level,
        sigma=first(sigma, level.sigma),
        parent=first(-1, level.parent) if is_first else torch.cat([own, level.parent + count]),
        root=torch.cat([own, level.root + count]),
        end=first(-1, level.end),
        trained=first(False, level.trained),
        k=first(0.0, level.k),
        std=first(0.0, level.std),
        log_prob=first(torch.nan, level.log_prob),
        row=first(-1, level.row),
        depth=first(0, level.depth),
    )
