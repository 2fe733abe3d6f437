"""The exact reward of an embedded world: its judge reads the image and compares with what was asked."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.worlds import find_world


class WorldReward(Part):
    """Partial credit in [0, 1], or 1 for an exact answer only."""

    kind: Literal["world"] = "world"
    world: str = "scenes"
    strict: bool = False
    """1 where everything asked for is there and nothing else, 0 otherwise, in place of partial credit."""
    weight: float = 1.0
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"{self.world}_strict" if self.strict else self.world

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        world = find_world(self.world)
        verdicts = [world.judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return torch.tensor([float(v.strict) if self.strict else v.score for v in verdicts])

    def marks(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, "B 1 H W"]:
        """1 at the pixels that are to blame for a wrong answer."""
        blame = find_world(self.world).blame
        assert blame is not None  # the recipe was checked
        found = [blame(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return torch.stack(found)[:, None] if found else torch.zeros(0, 1, *images.shape[2:])
