"""A picture with a sound: an embedded world's network and a small voice, so that latents have two parts.

The picture flows as the miniature model's; the sound is a short wave of data N(0, s²), whose flow is known,

    v = (σ - (1-σ) s²) / ((1-σ)² s² + σ²) x + voice(x, σ, mean colours of the noisy picture)

and the voice, which starts at 0, is trained beside the network. It reads the picture, never the other way
round. Latents are flat, the picture first. Shapes: B rows, T samples of the wave, C H W pixels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.core.part import Part
from thalweg.core.values import Condition, Media, Prompt
from thalweg.models.contract import Passes
from thalweg.models.miniature.network import fourier
from thalweg.models.miniature.policy import MiniatureModel, MiniaturePolicy
from thalweg.models.weights import NamedWeights
from thalweg.worlds import find_world

LEVELS = 32
"""Features of a noise level."""


class SoundingModel(Part):
    """A miniature model whose pictures come with a sound: the smallest model of two modalities."""

    kind: Literal["sounding"] = "sounding"
    world: str = "scenes"
    """Which world's base model draws the pictures."""
    num_audio: int = Field(default=32, ge=1)
    """T."""
    loudness: PositiveFloat = 0.2
    """s: standard deviation of the base's waves."""
    hidden_width: int = Field(default=1024, ge=1)
    """Of the voice; a narrow one hardly moves at the learning rates of the picture's network."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Of the picture, as in the miniature model."""
    device: str = "cpu"

    @field_validator("world")
    @classmethod
    def _known(cls, name: str) -> str:
        return find_world(name).name

    def load(self) -> "SoundingPolicy":
        """The world's base model, and a voice that changes nothing yet."""
        miniature = MiniatureModel(world=self.world, guidance_scale=self.guidance_scale, device=self.device)
        return SoundingPolicy(miniature.load(), self)


class Voice(nn.Module):
    """What the sound adds to the flow of its base."""

    def __init__(self, num_audio: int, channels: int, hidden_width: int) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(num_audio + LEVELS + channels, hidden_width)
        self.to_wave = nn.Linear(hidden_width, num_audio)
        nn.init.zeros_(self.to_wave.weight)
        nn.init.zeros_(self.to_wave.bias)

    def forward(
        self, wave: Float[Tensor, "B T"], sigma: Float[Tensor, " B"], colours: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B T"]:
        read = torch.cat([wave, fourier(sigma).to(wave.dtype), colours], 1)
        return self.to_wave(F.relu(self.to_hidden(read)))


class SoundingPolicy:
    """Fulfils `models.contract.Policy` and `HasParts`."""

    def __init__(self, picture: MiniaturePolicy, model: SoundingModel) -> None:
        self.model, self.picture = model, picture
        self.device, self.latent_dtype = picture.device, picture.latent_dtype
        self.passes_per_velocity = picture.passes_per_velocity
        channels, height, width = picture.world.image_shape
        self.parts: tuple[int, ...] = (channels * height * width, model.num_audio)
        self.latent_shape: tuple[int, ...] = (sum(self.parts),)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # voices start the same in every process and every run
            self.voice = Voice(model.num_audio, channels, model.hidden_width).to(self.device)
        own = {f"voice.{name}": p for name, p in self.voice.named_parameters()}
        self.weights = NamedWeights(picture.weights.parameters | own)
        self.passes = Passes()
        # One table of weights and one count for both.
        picture.weights, picture.passes = self.weights, self.passes

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        return self.picture.encode(prompts)

    def velocity(
        self, x: Float[Tensor, "B N"], sigma: Float[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B N"]:
        flat, wave = x.split(self.parts, 1)
        image = flat.unflatten(1, self.picture.latent_shape)
        of_picture = self.picture.velocity(image, sigma, condition)
        level, variance = sigma.to(x).view(-1, 1), self.model.loudness**2
        slope = (level - (1 - level) * variance) / ((1 - level) ** 2 * variance + level**2)
        of_wave = slope * wave + self.voice(wave, sigma.to(x), image.mean((2, 3)))
        return self.weights.watch(torch.cat([of_picture.flatten(1), of_wave], 1))

    def decode(self, latents: Float[Tensor, "B N"]) -> Media:
        flat, wave = latents.split(self.parts, 1)
        frames = self.picture.decode(flat.unflatten(1, self.picture.latent_shape))
        return Media(frames=frames[:, None], audio=wave[:, None].clamp(-1, 1).cpu())
