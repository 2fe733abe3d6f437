"""The `model` section for a diffusers pipeline: numbers alone; diffusers itself is imported by `load`."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from thalweg.core.blocks import Blocks
from thalweg.core.errors import UserError
from thalweg.core.part import Part

if TYPE_CHECKING:
    from thalweg.models.diffusers.policy import DiffusersPolicy

OURS = ("prompt", "latents", "num_inference_steps", "output_type", "generator", "sigmas", "timesteps")
"""Arguments of a pipeline's call that the policy gives."""


class Adapters(Part):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on linear layers of the network."""

    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    """Updates are scaled by alpha / rank, or by alpha / sqrt(rank) with `rslora`."""
    targets: tuple[str, ...] | None = None
    """Endings of the names of the layers that get one; None takes every linear layer of the blocks."""
    dora: bool = False
    """Train the magnitude of each weight apart from its direction (Liu et al. 2024, arXiv:2402.09353)."""
    rslora: bool = False
    """Scale for large ranks (Kalajdzievski 2023, arXiv:2312.03732)."""


class GradientScale(Part):
    """A factor on the gradient that flows back through an input of some modules; what they compute stays.

    It acts wherever a pass is differentiated, with respect to latents too.
    """

    modules: str = Field(min_length=1)
    """Ending of the names of the modules, of whole words between dots: `audio_to_video_attn`."""
    input: str
    """The argument of the modules: `encoder_hidden_states`, what attention takes keys and values from."""
    scale: float = Field(ge=0)
    """s: 0 stops the gradient, 1 leaves it."""
    blocks: Blocks | None = None
    """First and last of the network's blocks it acts in, counted from 0; None takes all."""


class DiffusersModel(Part):
    """Any flow pipeline of diffusers: images, video, audio."""

    kind: Literal["diffusers"] = "diffusers"
    path: str
    """Folder of a saved pipeline, or its name on the Hugging Face hub."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    height: PositiveInt | None = None
    """Pixels; None is the pipeline's own default, and so below."""
    width: PositiveInt | None = None
    num_frames: PositiveInt | None = None
    """Frames of a video."""
    audio_seconds: PositiveFloat | None = None
    """Length of a sound."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Strength of guidance in rollout, training and evaluation alike; what turns it off is the pipeline's."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the frozen weights and of activations; adapters stay in float32."""
    lora: Adapters | None = Adapters()
    """Train adapters of this size; null trains all weights of the network."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one forward more."""
    gradient_scales: tuple[GradientScale, ...] = ()
    """Where gradients are scaled on their way back through the network (OmniNFT's gradient surgery)."""
    max_sequence_length: PositiveInt | None = None
    """Text tokens."""
    call: Mapping[str, Any] = Field(default_factory=dict)
    """Further arguments of the pipeline's call, such as negative_prompt; `image` is the path of a file."""
    embedding_cache: str | None = None
    """Folder that keeps encoded prompts for other runs too; None keeps them in memory alone."""
    release_encoders: bool = False
    """Encode all prompts of the run first and then give the memory of the text encoders back."""
    decode_batch: PositiveInt = 4
    """Samples decoded at a time."""
    device: str = "cpu"

    @property
    def world(self) -> str | None:
        """A real model has no embedded world."""
        return None

    @field_validator("call")
    @classmethod
    def _not_ours(cls, call: Mapping[str, Any]) -> Mapping[str, Any]:
        taken = sorted(set(call) & set(OURS))
        if taken:
            raise ValueError(f"'{taken[0]}' is given by the rollout; leave it out")
        return call

    @model_validator(mode="after")
    def _trainable(self) -> "DiffusersModel":
        if self.lora is None and self.precision != "float32":
            raise ValueError(
                f"precision='{self.precision}' without lora: small updates of the weights would round to "
                "nothing; give lora, or precision=float32"
            )
        return self

    def load(self) -> "DiffusersPolicy":
        """The pipeline as a policy, with fresh adapters."""
        if find_spec("diffusers") is None:
            raise UserError(
                "model.kind='diffusers': diffusers is not installed; pip install 'thalweg[diffusers]'"
            )
        from thalweg.models.diffusers.pipelines import open_pipeline
        from thalweg.models.diffusers.policy import DiffusersPolicy

        return DiffusersPolicy(open_pipeline(self), self)
