"""Finished samples under drawn noise levels as rows. Shapes: B leaves, R rewards, ... latent axes."""

import torch

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address, normals
from thalweg.core.values import Samples
from thalweg.objectives.sigma_draw import Stratified


def samples(
    forest: Forest, advantages: Advantages, sigmas: Stratified, *, seed: int, iteration: int
) -> Samples:
    """Each leaf once for each noise level drawn for it, with fresh noise every time; levels side by side."""
    leaves = forest.leaves
    identity = list(
        zip(leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.sample.tolist(), strict=True)
    )
    sigma = torch.stack([sigmas.draw(Address(seed, "sigmas", iteration, p, g, (s,))) for p, g, s in identity])
    levels = sigma.shape[1]
    x0 = forest.latents
    noise = [
        Address(seed, "forward noise", iteration, p, g, (s,), i)
        for p, g, s in identity
        for i in range(levels)
    ]
    leaf = torch.arange(len(leaves)).repeat_interleave(levels)
    return Samples(
        x0=x0[leaf],
        sigma=sigma.flatten(),
        noise=normals(noise, x0.shape[1:]).to(x0.device),
        advantages=advantages.leaves[leaf],
        weight=torch.ones(len(leaf)),
        condition=forest.leaf_condition[leaf],
        prompt_slot=leaves.prompt_slot[leaf],
        seed_group=leaves.seed_group[leaf],
        sample=leaves.sample[leaf],
        step=torch.arange(levels).repeat(len(leaves)),
    )
