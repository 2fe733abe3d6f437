"""Each part of the latents hears its own rewards: OmniNFT (2026, arXiv:2605.12480; zghhui/OmniNFT).

    A_m = Σ w_r A_r over the rewards of part m, and over those that no part has to itself

so that a bad sound does not push a good picture away. Rewards are normalised in the group one by one, and
weighed after that. A part that hears none is refused: the authors' code falls back on the averaged reward
there, and rewards that everyone hears, left out of `parts`, say that in the recipe.

Where the rollout notes attention, elements count by it,

    L_m = sum_p a_p l_p / sum_p a_p,      a_p = w where p is among the most attended elements, else 1

with w rising from 1 over the first iterations, and a_p = 1 in parts that are not looked at. Differs from the
code: each sample has its own attention, there that of the first row; it is the network's own, there without
rotary embedding; adaptive weights of the objective see a_p too; parts share a noise level. The authors clip
and rescale attention before they take the highest, which changes only what is tied among the highest 1 %.
Shapes: B samples of this process, R parts, ... latent axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.part import Part
from thalweg.core.processes import Processes
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized


class Attended(Part):
    """Elements that are paid much attention count more."""

    weight: float = Field(default=1.5, ge=1)
    """w, after the warm-up; 1 makes all elements count alike."""
    fraction: float = Field(default=0.4, gt=0, lt=1)
    """Share of the elements that get it, and those tied with the last of them."""
    warmup: int = Field(default=400, ge=0)
    """Iterations in which the weight rises from 1, in a straight line; 0: it acts at once."""

    def weight_at(self, iteration: int) -> float:
        """w of an iteration, counted from 0."""
        share = min(iteration / self.warmup, 1.0) if self.warmup else 1.0
        return 1 + (self.weight - 1) * share

    def weights(self, attention: Float[Tensor, "B ..."], iteration: int) -> Float[Tensor, "B ..."]:
        """a, from the attention of each element; NaN where it is not known, which counts 1."""
        flat = attention.flatten(1)
        known = (~flat.isnan()).sum(1, keepdim=True)
        place = (self.fraction * known).round().long().clamp(min=1) - 1
        falling = flat.nan_to_num(nan=-torch.inf).sort(1, descending=True).values
        # No comparison with NaN is true.
        is_high = flat >= falling.gather(1, place)
        return torch.where(is_high, self.weight_at(iteration), 1.0).view_as(attention)


class RoutedCredit(Normalized):
    """One number a sample and part, which counts in that part alone."""

    kind: Literal["routed"] = "routed"
    parts: tuple[tuple[str, ...], ...] = Field(min_length=2)
    """The rewards of each part of the latents, in the model's order; rewards named nowhere are everyone's."""
    attended: Attended | None = None
    """Weigh elements by the attention that `rollout.attention` notes; None: all of a part count alike."""

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
        columns = torch.stack([of_reward[:, self.heard(part, names)].sum(1) for part in self.parts], 1)
        limit = torch.inf if self.limit is None else self.limit
        given = forest.advantages(columns.clamp(-limit, limit))
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        masks = (owner == torch.arange(len(sizes))[:, None]).float()
        shape = forest.latents.shape[1:]
        regions = masks.view(1, -1, *shape).expand(len(columns), -1, *shape)
        if self.attended is not None:
            assert forest.attention is not None  # the recipe was checked
            regions = regions * self.attended.weights(forest.attention, forest.iteration)[:, None]
        return replace(given, regions=regions)

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        return self._group.groups(leaves)

    def heard(self, part: tuple[str, ...], names: Sequence[str]) -> list[int]:
        """Which rewards of these names a part hears."""
        routed = {name for own in self.parts for name in own}
        return [i for i, name in enumerate(names) if name in part or name not in routed]

    @property
    def _group(self) -> GroupCredit:
        return GroupCredit.like(self, combine="separate")
