"""Finished samples under drawn noise levels as rows. Shapes: B leaves, R rewards, ... latent axes."""

from dataclasses import fields, replace
from typing import Literal

import torch

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address, normals
from thalweg.core.values import Samples
from thalweg.flow import LinearPath
from thalweg.objectives.sigma_draw import Sigmas

PATH = LinearPath()

Noise = Literal["fresh", "one", "rollout", "path"]
"""Drawn anew at every level, once for all levels, the noise that the rollout started from, or what leads to
the state that the rollout went through.
"""


def samples(
    forest: Forest,
    advantages: Advantages,
    sigmas: Sigmas,
    *,
    seed: int,
    iteration: int,
    noise: Noise = "fresh",
    shared_in_group: bool = False,
    with_corrected: bool = False,
) -> Samples:
    """Each leaf once for each noise level drawn for it; levels side by side.

    Shared in the group, all samples of a prompt have the same levels, and but for the rollout's own the same
    noise: what is shared has one address. With `path` the levels are those of the rollout, which keeps its
    states, and the noise is ε = (x - (1-σ) x0) / σ of the state x that the sample went through there. With
    corrected samples these follow, under the levels and the noise of the samples they stand for.
    """
    leaves = forest.leaves
    identity = list(
        zip(leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.sample.tolist(), strict=True)
    )
    owners = [(p, 0, ()) if shared_in_group else (p, g, (s,)) for p, g, s in identity]
    sigma = torch.stack(
        [
            sigmas.draw(Address(seed, "sigmas", iteration, p, g, path), grid)
            for (p, g, path), grid in zip(owners, forest.sigmas[:, :-1], strict=True)
        ]
    )
    levels = sigma.shape[1]
    x0 = forest.latents
    leaf = torch.arange(len(leaves)).repeat_interleave(levels)
    if noise == "rollout" and forest.starts is not None:
        drawn = forest.starts[leaf]
    elif noise == "rollout":
        own = [Address(seed, "initial", iteration, p, g) for p, g, _ in identity]
        drawn = normals(own, x0.shape[1:]).to(x0.device)[leaf]
    elif noise == "path":
        at = (forest.sigmas[leaf] == sigma.view(-1, 1)).int().argmax(1)
        states = forest.paths[leaf.to(x0.device), at.to(x0.device)]
        drawn = PATH.noise(x0[leaf], states, sigma.flatten())
    else:
        addresses = [
            Address(seed, "forward noise", iteration, p, g, path, i if noise == "fresh" else 0)
            for p, g, path in owners
            for i in range(levels)
        ]
        drawn = normals(addresses, x0.shape[1:]).to(x0.device)
    rows = Samples(
        x0=x0[leaf],
        sigma=sigma.flatten(),
        noise=drawn,
        advantages=advantages.leaves[leaf],
        weight=torch.ones(len(leaf)),
        condition=forest.leaf_condition[leaf],
        prompt_slot=leaves.prompt_slot[leaf],
        seed_group=leaves.seed_group[leaf],
        sample=leaves.sample[leaf],
        step=torch.arange(levels).repeat(len(leaves)),
        regions=None if advantages.regions is None else advantages.regions[leaf],
    )
    if not with_corrected or advantages.corrected is None:
        return rows
    wanted = advantages.corrected[leaf].to(x0)
    known = wanted.flatten(1).isfinite().all(1).cpu()
    again = replace(rows.index(known), x0=wanted[known.to(x0.device)])
    again = replace(again, step=again.step + levels)
    if again.regions is not None and advantages.corrected_regions is not None:
        own = advantages.corrected_regions[leaf][known]
        again = replace(again, regions=own[:, None].expand_as(again.regions))
    return together(
        replace(rows, corrected=torch.zeros(len(rows), dtype=torch.bool)),
        replace(again, corrected=torch.ones(len(again), dtype=torch.bool)),
    )


def together(one: Samples, other: Samples) -> Samples:
    """The rows of both."""
    columns = {field.name: (getattr(one, field.name), getattr(other, field.name)) for field in fields(one)}
    return Samples(**{name: torch.cat(pair) for name, pair in columns.items() if pair[0] is not None})
