"""What the rest of the library asks of a model: velocity, conditions, decoding, and named weights.

Shapes: B rows, ... the model's latent axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Condition, Media, Metrics, Prompt, Size
from thalweg.models.weights import NamedWeights


@dataclass
class Passes:
    """Network passes of one sample so far; a guided velocity takes two."""

    evaluations: int = 0
    backwards: int = 0


@runtime_checkable
class Policy(Protocol):
    """A generative flow whose weights are trained."""

    latent_shape: tuple[int, ...]
    latent_dtype: torch.dtype
    """What a state is rounded to before the network sees it."""
    device: torch.device
    weights: NamedWeights
    passes: Passes
    passes_per_velocity: int
    """Network passes behind one guided velocity."""

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """One condition row a prompt."""
        ...

    def velocity(
        self, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B ..."]:
        """dx/dsigma = noise - data, guided, in float32; with gradients where they are enabled."""
        ...

    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"] | Media:
        """Images with values in [0, 1], or video and sound."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A policy whose prompt embeddings can be moved."""

    def embed(self, condition: Condition) -> Condition:
        """The condition with floating `embedding` (B, L, D), which `velocity` then reads in place of the
        prompt's own, and `content` (B, L), 1 at tokens that carry meaning.
        """
        ...


@runtime_checkable
class HasParts(Protocol):
    """A policy whose flat latents consist of parts, such as a video and its sound."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Latent elements of each part, one after another."""
        ...


@runtime_checkable
class HasAttention(Protocol):
    """A policy whose network can say where it looks."""

    def require_attention(self, modules: str, blocks: tuple[int, int] | None) -> None:
        """Raises UserError where the network has no such attention, or nobody knows what it looks at."""
        ...

    def attended(
        self,
        x: Float[Tensor, "B ..."],
        sigma: Float[Tensor, " B"],
        condition: Condition,
        modules: str,
        blocks: tuple[int, int] | None,
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """`velocity`, and how much attention each latent element is paid on the way by modules of that name
        in these blocks (first and last; None: all): a mean over heads and blocks, a sum over who pays; NaN at
        elements that they do not look at. Of a guided velocity, by the conditional pass.
        """
        ...


@runtime_checkable
class HasSizes(Protocol):
    """A policy whose prompts may ask for samples of different sizes; `encode` writes them into `SIZE`."""

    def sizes_of(self, prompts: Sequence[Prompt]) -> list[Size]:
        """What each prompt asks for; raises UserError, with the prompt's place, where that is no size."""
        ...

    def at(self, size: Size) -> Policy:
        """The same policy, weights and counters, making samples of this size; its latents have their own
        shape.
        """
        ...


@runtime_checkable
class ReadsImages(Protocol):
    """A policy that can take up images it has not made."""

    def read(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B ..."]:
        """The finished latents of images with values in [0, 1]; `decode` gives them back."""
        ...


@runtime_checkable
class EncodesAhead(Protocol):
    """A policy that may want all prompts of a run before it starts."""

    def encode_ahead(self, prompts: Sequence[Prompt]) -> Metrics:
        """What was done, in numbers; empty where nothing was."""
        ...


@runtime_checkable
class ModelContract(Protocol):
    """The `model` section of a recipe: numbers, and how they become a policy."""

    @property
    def world(self) -> str | None:
        """The embedded world whose prompts and judge go with the model, if there is one."""
        ...

    def load(self) -> Policy:
        """The untrained model."""
        ...
