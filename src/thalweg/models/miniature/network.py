"""A small text-conditioned flow transformer: the network of the embedded worlds.

With x_σ = (1-σ) x0 + σ ε and pixels in [-1, 1] it predicts x0 and returns the velocity

    v = (x_σ - x̂0) / max(σ, 0.05)          (= ε - x0 where x̂0 = x0 and σ >= 0.05)

Pixels are folded 2x2 into channels, a convolutional stem works at half resolution, tokens at a quarter; text
tokens attend to each other first, so that a colour finds its noun, and then join the image tokens. Token 0 is
padding: a prompt of padding alone is the unconditional one. Shapes: M tokens in all, S stem channels.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.core.part import Part

SIGMA_MIN = 0.05


class MiniatureConfig(Part):
    """The sizes of a miniature network."""

    kind: Literal["miniature"] = "miniature"
    channels: int = 3
    height: int
    """Pixels, a multiple of 4."""
    width: int
    """Pixels, a multiple of 4."""
    num_tokens: int
    """Vocabulary size, padding included."""
    text_length: int
    """L: tokens of every prompt, padded with 0."""
    stem_channels: int = 48
    """Channels of the convolutions at half resolution."""
    model_width: int = 128
    """D: width of the tokens."""
    text_depth: int = 2
    """Self-attention blocks over the text alone."""
    depth: int = 5
    """Blocks over image and text together."""
    num_heads: int = 4
    mlp_ratio: int = 3
    """Hidden width of an MLP over D."""


class Attention(nn.Module):
    """Multi-head self-attention with separate projections, which is where LoRA attaches."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        q, k, v = (
            to(h).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        # In bfloat16 on a CPU the fused kernel spends more on its backward than the rest of the network.
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(width, width * ratio)
        self.to_out = nn.Linear(width * ratio, width)

    def forward(self, h: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        return self.to_out(F.relu(self.to_hidden(h)))


class TextBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: MiniatureConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.model_width)
        self.attention = Attention(config.model_width, config.num_heads)
        self.norm_mlp = nn.LayerNorm(config.model_width)
        self.mlp = MLP(config.model_width, config.mlp_ratio)

    def forward(self, h: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        h = h + self.attention(self.norm_attention(h))
        return h + self.mlp(self.norm_mlp(h))


class JointBlock(nn.Module):
    """A transformer block modulated by σ and the prompt (Peebles & Xie 2023, arXiv:2212.09748)."""

    def __init__(self, config: MiniatureConfig) -> None:
        super().__init__()
        width = config.model_width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, config.num_heads)
        self.mlp = MLP(width, config.mlp_ratio)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Float[Tensor, "B M D"], summary: Float[Tensor, "B D"]) -> Float[Tensor, "B M D"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(summary)[:, None].chunk(6, dim=2)
        h = h + (1 + gate_a) * self.attention(self.norm(h) * (1 + scale_a) + shift_a)
        return h + (1 + gate_m) * self.mlp(self.norm(h) * (1 + scale_m) + shift_m)


class ConvBlock(nn.Module):
    """A residual convolution at half resolution, shifted channel by channel by σ and the prompt."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.shift = nn.Linear(width, channels)

    def forward(self, h: Float[Tensor, "B S H W"], summary: Float[Tensor, "B D"]) -> Float[Tensor, "B S H W"]:
        return h + self.second(F.relu(self.first(F.relu(h)) + self.shift(summary)[:, :, None, None]))


def fourier(sigma: Float[Tensor, " B"]) -> Float[Tensor, "B 32"]:
    """sin and cos of σ at 16 frequencies from π/2 up to some 60 periods a unit."""
    frequencies = torch.exp2(torch.linspace(-1, 7, 16, device=sigma.device)) * torch.pi
    angles = sigma[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Miniature(nn.Module):
    """`forward` returns the velocity of images in [-1, 1]."""

    def __init__(self, config: MiniatureConfig) -> None:
        super().__init__()
        self.config = config
        width, stem = config.model_width, config.stem_channels
        num_places = (config.height // 4) * (config.width // 4)
        self.sigma_in = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width))
        self.words = nn.Embedding(config.num_tokens, width)
        self.word_places = nn.Parameter(torch.randn(config.text_length, width) * 0.3)
        self.text_blocks = nn.ModuleList([TextBlock(config) for _ in range(config.text_depth)])
        self.text_norm = nn.LayerNorm(width)
        self.text_pool = nn.Linear(width, width)

        self.stem = nn.Conv2d(config.channels * 4, stem, 3, padding=1)
        self.encode = ConvBlock(stem, width)
        self.to_tokens = nn.Conv2d(stem, width, 2, stride=2)
        self.places = nn.Parameter(torch.randn(num_places, width) * 0.3)
        self.blocks = nn.ModuleList([JointBlock(config) for _ in range(config.depth)])
        self.norm_out = nn.LayerNorm(width)
        self.from_tokens = nn.Linear(width, stem * 4)
        self.decode = nn.ModuleList([ConvBlock(stem, width) for _ in range(2)])
        self.out = nn.Conv2d(stem, config.channels * 4, 3, padding=1)

    def predict_x0(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        tokens: Int[Tensor, "B L"],
        words: Float[Tensor, "B L D"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """The expected clean image; `words` stand in for the embeddings of the tokens."""
        text = (self.words(tokens) if words is None else words) + self.word_places
        for block in self.text_blocks:
            text = block(text)
        text = self.text_norm(text)
        summary = F.relu(self.sigma_in(fourier(sigma).to(x.dtype)) + self.text_pool(text.mean(1)))

        features = self.encode(self.stem(F.pixel_unshuffle(x, 2)), summary)
        image = self.to_tokens(features)
        height, width = image.shape[2:]
        h = torch.cat([image.flatten(2).transpose(1, 2) + self.places, text], dim=1)
        for block in self.blocks:
            h = block(h, summary)
        image = self.from_tokens(self.norm_out(h[:, : height * width]))
        image = image.transpose(1, 2).unflatten(2, (height, width))
        features = features + F.pixel_shuffle(image, 2)
        for block in self.decode:
            features = block(features, summary)
        return F.pixel_shuffle(self.out(F.relu(features)), 2)

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        tokens: Int[Tensor, "B L"],
        words: Float[Tensor, "B L D"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """dx/dσ = ε - x0 at x_σ."""
        x0 = self.predict_x0(x, sigma, tokens, words)
        return (x - x0) / sigma.clamp(min=SIGMA_MIN)[:, None, None, None]
