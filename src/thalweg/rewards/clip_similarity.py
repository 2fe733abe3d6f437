"""Cosine of an image and a text under CLIP (Radford et al. 2021, arXiv:2103.00020), with its gradient.

    cos = f(image) · g(text) / (|f| |g|),     f, g the projected features

Images are resized (bicubic, antialiased), cropped to a square at the centre and normalised as the model's own
preprocessor does, on tensors, so that a score has a gradient to the image. Differs from the preprocessor by
its rounding to 8 bits between resizing and normalising.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from thalweg.core.errors import UserError


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP model, its tokenizer, and what it expects of images."""

    model: Any
    tokenizer: Any
    size: int
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.exp())

    def similarity(
        self, images: Float[Tensor, "B 3 H W"], texts: Sequence[str], batch: int
    ) -> Float[Tensor, " B"]:
        """The cosine of each image and its text, on the CPU, `batch` at a time."""
        starts = range(0, len(images), batch)
        parts = [self._similarity(images[i : i + batch], texts[i : i + batch]) for i in starts]
        return torch.cat(parts) if parts else torch.zeros(0)

    def _similarity(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        device = self.model.device
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        pixels = (self.squares(images.to(device).float()) - self.mean) / self.std
        found = self.model(
            pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        image, text = found.image_embeds, found.text_embeds
        return torch.nn.functional.cosine_similarity(image, text).cpu()

    def squares(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        """Resized so that the shorter side is `size`, and cut to the square in the middle."""
        height, width = images.shape[-2:]
        shorter = min(height, width)
        sides = (int(height * self.size / shorter), int(width * self.size / shorter))
        resized = interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (sides[0] - self.size) // 2, (sides[1] - self.size) // 2
        return resized[..., top : top + self.size, left : left + self.size]


@cache
def load_clip(path: str, device: str, reward: str) -> Clip:
    """The model of a folder or of the hub; only safetensors are read. `reward` is named where it fails."""
    if find_spec("transformers") is None:
        raise UserError(f"reward '{reward}': transformers is not installed; pip install 'thalweg[rewards]'")
    from transformers import AutoConfig, AutoTokenizer, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    lacking = (
        f"reward '{reward}': no CLIP model at model='{path}': there is no such folder, and the hub has none "
        "of that name or cannot be reached; download it where there is a network, and give its folder"
    )
    if not Path(path).is_dir() and path.count("/") != 1:
        raise UserError(lacking)
    try:
        kind = AutoConfig.from_pretrained(path).model_type
        if kind != "clip":
            raise UserError(f"reward '{reward}': model='{path}' is a '{kind}' model; give a CLIP model")
        loaded: Any = CLIPModel.from_pretrained(path, use_safetensors=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
        images, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(lacking) from error
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(
            f"reward '{reward}': model='{path}' lacks {len(report['missing_keys'])} of its weights, such as "
            f"'{min(report['missing_keys'])}'; download it again"
        )
    mean, std = (
        torch.tensor(images[name], device=device).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    return Clip(
        model.eval().requires_grad_(False).to(device),
        tokenizer,
        model.config.vision_config.image_size,
        mean,
        std,
    )
