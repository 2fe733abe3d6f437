"""PickScore, what people prefer to see for a prompt (Kirstain et al. 2023, arXiv:2305.01569).

A CLIP-H trained on pairs of images of which one was picked:

    score = s · cos(image, text),     s = exp(logit_scale), about 100

Raw values lie between 18 and 25. Flow-GRPO divides them by 26, which is `weight: 0.0385`.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.rewards.clip_similarity import Clip, load_clip


class PickScore(Part):
    """Human preference by PickScore_v1: the scaled cosine of image and prompt, about 18 to 25."""

    kind: Literal["pickscore"] = "pickscore"
    model: str = "yuvalkirstain/PickScore_v1"
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
        clip = self.open()
        cosine = clip.similarity(images, [prompt.text for prompt in prompts], self.batch)
        return clip.logit_scale * cosine
