"""Rewards that need no model: simple statistics of pixels, for first steps and for tests of a whole
pipeline.
"""

import io
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Prompt


class Brightness(Part):
    """Mean of all pixels, in [0, 1]."""

    kind: Literal["brightness"] = "brightness"
    weight: float = 1.0
    differentiable: ClassVar[bool] = True
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.kind

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        return images.flatten(1).mean(1).cpu()


class JPEGSize(Part):
    """Minus the kilobytes of the image as JPEG: compressibility, as in DDPO (Black et al. 2023,
    arXiv:2305.13301).
    """

    kind: Literal["jpeg_size"] = "jpeg_size"
    weight: float = 1.0
    """Negative to reward detail instead."""
    quality: int = Field(default=95, ge=1, le=100)
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.kind

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        sizes = []
        for image in pixels:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=self.quality)
            sizes.append(-file.tell() / 1000)
        return torch.tensor(sizes, dtype=torch.float32)
