"""CLIPScore without its factor: the cosine of image and prompt (Hessel et al. 2021, arXiv:2104.08718).

The paper reports 2.5 · max(cos, 0); code of this field takes the cosine, 0.2 to 0.4 for images that fit.
Values of different CLIP models do not compare.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.rewards.clip_similarity import Clip, load_clip


class CLIPScore(Part):
    """Agreement of image and prompt: their cosine under CLIP ViT-L/14, about 0.2 to 0.4."""

    kind: Literal["clipscore"] = "clipscore"
    model: str = "openai/clip-vit-large-patch14"
    """Folder, or name on the Hugging Face hub."""
    weight: float = 1.0
    batch: PositiveInt = 16
    """Images in one pass."""
    device: str = "cpu"
    differentiable: ClassVar[bool] = True
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.kind

    def open(self) -> Clip:
        """Load the weights; raises UserError where there are none."""
        return load_clip(self.model, self.device, self.kind)

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        return self.open().similarity(images, [prompt.text for prompt in prompts], self.batch)
