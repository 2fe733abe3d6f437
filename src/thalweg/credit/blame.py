"""Blame for a place: a sample that fails answers for the pixels where it does (CreFlow, arXiv:2605.14274).

    A as in `group`;      m = the blamed pixels of a failed sample; of a right one, all pixels that its
                          group's failures are blamed for;      m >= floor everywhere
    x̃0 = (1 - m) x0 + m x̄     of a failed sample, x̄ the mean of the group's right ones

x̃0 is what an objective with corrective_weight regresses on, over m without the floor: where nothing is to
blame nothing is imitated. The judge of a world marks the pixels, in place
of the paper's constraints over frames. The paper's formulas were not available: masks and x̃0 are our reading.
Shapes: B samples of this process, ... latent axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from thalweg.core.forest import Advantages, Forest, Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.credit.group import GroupCredit
from thalweg.credit.normalized import Normalized, across


class BlameCredit(Normalized):
    """One number a sample, and where it counts."""

    kind: Literal["blame"] = "blame"
    floor: float = Field(default=0.0, ge=0, le=1)
    """Least weight of a latent element: a weak signal everywhere (0.05)."""

    def assign(
        self, forest: Forest, scores: Scores, weights: Mapping[str, float], processes: Processes
    ) -> Advantages:
        """Advantages of this process's samples, the places they count at, and what failures should be."""
        assert scores.marks is not None  # collected for this credit
        given = self._group.assign(forest, scores, weights, processes)
        x0 = forest.latents.cpu()
        columns = {"prompt": forest.leaves.prompt_slot, "marks": scores.marks, "x0": x0}
        everyone, mine = across(processes, columns)
        failed = everyone["marks"].flatten(1).amax(1) > 0
        united, right, has_right = group_of(everyone["prompt"], everyone["marks"], everyone["x0"], failed)
        marks = torch.where(failed.view(-1, 1, 1, 1), everyone["marks"], united)[mine]
        # A group without failures has nothing to be blamed for: all of it counts.
        marks = torch.where(marks.flatten(1).amax(1).view(-1, 1, 1, 1) > 0, marks, 1)
        place = adaptive_max_pool2d(marks, x0.shape[-2:])
        wanted = (1 - place) * x0 + place * right[mine]
        corrected = torch.where((failed & has_right)[mine].view(-1, *[1] * (x0.ndim - 1)), wanted, torch.nan)
        softened = place.clamp(min=self.floor)[:, None]
        return replace(given, regions=softened, corrected=corrected, corrected_regions=place)

    def groups(self, leaves: Leaves) -> Int64[Tensor, " B"]:
        return self._group.groups(leaves)

    @property
    def _group(self) -> GroupCredit:
        return GroupCredit.like(self)


def group_of(
    prompt: Int64[Tensor, " B"],
    marks: Float[Tensor, "B 1 H W"],
    x0: Float[Tensor, "B ..."],
    failed: Bool[Tensor, " B"],
) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B ..."], Bool[Tensor, " B"]]:
    """Of each sample's group: the union of marks, the mean of the right samples (0 without one), and whether
    there is one.
    """
    united, right, has_right = torch.zeros_like(marks), torch.zeros_like(x0), torch.zeros_like(failed)
    for slot in prompt.unique().tolist():
        own = prompt == slot
        united[own] = marks[own].amax(0)
        if bool((own & ~failed).any()):
            right[own], has_right[own] = x0[own & ~failed].mean(0), True
    return united, right, has_right
