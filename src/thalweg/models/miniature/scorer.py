"""A network that tells how a sample will turn out while it is still noise.

From latents x at noise level σ and a prompt it gives the log-odds that the sample, finished by the base's
ODE, is exactly what was asked for; differentiable in x. It is a diffusion reward model (DRM, 2026,
arXiv:2605.25661): the front of the policy's network and a small head, in place of a judge of finished images.

Text, σ and image enter as in `Miniature`, whose first layers it shares by name and may start from; a learned
token joins them, reads both through plain transformer blocks, and carries the verdict out. Shapes: O kinds of
object.
"""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.core.part import Part
from thalweg.models.miniature.network import ConvBlock, MiniatureConfig, TextBlock, fourier


class ScorerConfig(Part):
    """The sizes of a scorer."""

    kind: Literal["miniature_scorer"] = "miniature_scorer"
    front: MiniatureConfig
    """Sizes of the layers shared with `Miniature`; `depth` counts the joint blocks."""
    mlp_ratio: int = 2
    """Hidden width of an MLP over D in the joint blocks."""
    num_objects: int
    """O: kinds of object whose number in the finished image a second head tells, to learn from."""


class Scorer(nn.Module):
    """`forward` returns log-odds of success, and the expected number of objects of each kind."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config, front = config, config.front
        width, stem = front.model_width, front.stem_channels
        num_places = (front.height // 4) * (front.width // 4)
        self.sigma_in = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width))
        self.words = nn.Embedding(front.num_tokens, width)
        self.word_places = nn.Parameter(torch.randn(front.text_length, width) * 0.3)
        self.text_blocks = nn.ModuleList([TextBlock(front) for _ in range(front.text_depth)])
        self.text_norm = nn.LayerNorm(width)
        self.text_pool = nn.Linear(width, width)

        self.stem = nn.Conv2d(front.channels * 4, stem, 3, padding=1)
        self.encode = ConvBlock(stem, width)
        self.to_tokens = nn.Conv2d(stem, width, 2, stride=2)
        self.places = nn.Parameter(torch.randn(num_places, width) * 0.3)
        self.verdict = nn.Parameter(torch.randn(1, width) * 0.3)
        joint = front.model_copy(update={"mlp_ratio": config.mlp_ratio})
        self.blocks = nn.ModuleList([TextBlock(joint) for _ in range(front.depth)])
        self.norm_out = nn.LayerNorm(width)
        self.to_logit = nn.Linear(width, 1)
        self.to_counts = nn.Linear(width, config.num_objects)

    def forward(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], tokens: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B O"]]:
        text = self.words(tokens) + self.word_places
        for block in self.text_blocks:
            text = block(text)
        text = self.text_norm(text)
        level = self.sigma_in(fourier(sigma).to(x.dtype))
        summary = F.relu(level + self.text_pool(text.mean(1)))

        image = self.to_tokens(self.encode(self.stem(F.pixel_unshuffle(x, 2)), summary))
        image = image.flatten(2).transpose(1, 2) + self.places
        verdict = (self.verdict + level[:, None]).to(text.dtype)
        h = torch.cat([verdict, image.to(text.dtype), text], dim=1)
        for block in self.blocks:
            h = block(h)
        h = self.norm_out(h)
        counts = self.to_counts(h[:, 1 : 1 + image.shape[1]]).sum(1)
        return self.to_logit(h[:, 0])[:, 0].float(), counts.float()


def load_scorer(weights: Path) -> Scorer:
    """The scorer a safetensors file holds, sizes from its metadata, frozen, in float32."""
    with safe_open(weights, framework="pt") as file:
        config = ScorerConfig.model_validate_json((file.metadata() or {})["config"])
    scorer = Scorer(config)
    scorer.load_state_dict({name: t.float() for name, t in load_file(weights).items()})
    return scorer.requires_grad_(False).eval()
