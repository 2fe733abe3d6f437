"""Each part of the latents hears its own rewards: OmniNFT (2026, arXiv:2605.12480; zghhui/OmniNFT).

    A_m = Σ w_r A_r over the rewards of part m, and over those that no part has to itself

so that a bad sound does not push a good picture away. Rewards are normalised in the group one by one, and
weighed after that. Differs from the code: all elements of a part count alike, where the authors weigh video
tokens by the attention that sound pays them; parts share a noise level; no gradient is scaled between their
layers. Shapes: B samples of this process, R parts, ... latent axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized


class RoutedCredit(Normalized):
    """One number a sample and part, which counts in that part alone."""

    kind: Literal["routed"] = "routed"
    parts: tuple[tuple[str, ...], ...] = Field(min_length=2)
    """The rewards of each part of the latents, in the model's order; rewards named nowhere are everyone's."""

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's samples, one for each part, and the parts as regions."""
        sizes = forest.parts
        if len(sizes) != len(self.parts):
            raise UserError(
                f"credit.parts: names {len(self.parts)} parts, and the latents of this model have "
                f"{len(sizes)}; name as many, or use credit 'group'"
            )
        of_reward = self._group.of_leaves(forest, scores, weights, processes)
        names = [name for name in weights if name in scores.leaves]
        columns = torch.stack([of_reward[:, self._heard(part, names)].sum(1) for part in self.parts], 1)
        limit = torch.inf if self.limit is None else self.limit
        given = forest.advantages(columns.clamp(-limit, limit))
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        masks = (owner == torch.arange(len(sizes))[:, None]).float()
        shape = forest.latents.shape[1:]
        return replace(given, regions=masks.view(1, -1, *shape).expand(len(columns), -1, *shape))

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        return self._group.groups(leaves)

    def _heard(self, part: tuple[str, ...], names: list[str]) -> list[int]:
        """Which rewards a part hears."""
        routed = {name for own in self.parts for name in own}
        return [i for i, name in enumerate(names) if name in part or name not in routed]

    @property
    def _group(self) -> GroupCredit:
        return GroupCredit.like(self, combine="separate")
