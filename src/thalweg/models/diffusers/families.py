"""Where a pipeline differs from the rule; what is not listed here needs nothing.

The rule: `latents=` takes what `step` sees, guidance is `guidance_scale`, and a call has one noise level. A
pipeline that is not listed works by it; `thalweg doctor model=FOLDER` says whether an entry would help.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.models.diffusers.modular import name_of


@dataclass(frozen=True)
class Family:
    """What is particular to a pipeline class."""

    rows_may_differ: bool = False
    """Rows of one call may stand at different noise levels; otherwise each level is a call."""
    latents: tuple[str, ...] = ("latents",)
    """Arguments that take the parts of a state, in the order of their `step`s."""
    to_argument: Callable[[Tensor, Any, Mapping[str, Any]], Tensor] | None = None
    """(state, pipeline, call) -> what `latents=` takes."""
    steps: int = 1
    """Steps that a call is asked for; the seam serves its own. Mochi cannot work out a schedule of one."""
    guidance_scale: str = "guidance_scale"
    """The argument for the strength of guidance."""
    one_row: bool = False
    """A call takes one sample only."""
    one_prompt: bool = False
    """The text encoder takes one prompt only, or gives one negative for all; the network takes several
    rows.
    """
    decodes_alone: bool = False
    """The decoder takes one sample at a time."""
    lists: tuple[str, ...] = ()
    """Texts besides the prompt that are given for each sample; a prompt's metadata may name them."""
    audio_seconds: str = "duration"
    """The argument for the length of a sound."""
    attended: Mapping[str, int] = field(default_factory=dict)
    """Attention modules, by the ending of their names, whose keys are the tokens of a part of the state, and
    which part; of a batch that guidance doubles, the conditional rows must be the last.
    """
    trained_as: tuple[str, ...] = ()
    """Endings of the names of modules that are left in training mode: outside of it HiDream's experts are run
    under `no_grad`, and the gradient of all before them lacks their part.
    """
    shares_samples: bool = False
    """Processes can share a sample: parts of its tokens give parts of every gradient (tested by family). All
    prompts have the same number of tokens, or the network takes a mask of them.
    """


def _tokens_to_map(state: Float[Tensor, "B L C"], pipeline: Any, call: Mapping[str, Any]) -> Tensor:
    """FLUX.2 and FLUX.3 take (B, C, h, w) and pack it into tokens; what is not asked for is square."""
    tokens, patch = state.shape[1], 2 * pipeline.vae_scale_factor
    width = call["width"] // patch if "width" in call else math.isqrt(tokens)
    height = call["height"] // patch if "height" in call else tokens // width
    return state.transpose(1, 2).unflatten(2, (height, tokens // height))


def _beside_an_empty_condition(
    state: Float[Tensor, "B F h w C"], pipeline: Any, call: Mapping[str, Any]
) -> Tensor:
    """Kandinsky 5 takes a state with the latents and the mask of an image, none here, on its channels."""
    if not pipeline.transformer.config["visual_cond"]:
        return state
    return torch.cat([state, torch.zeros_like(state), torch.zeros_like(state[..., :1])], -1)


def _after_the_image(
    state: Float[Tensor, "B C F h w"], pipeline: Any, call: Mapping[str, Any]
) -> Float[Tensor, "B L D"]:
    """LTX takes tokens of a whole video, and steps all but its first frame, which is the image."""
    count, channels, _, height, width = state.shape
    scale = pipeline.vae_spatial_compression_ratio
    size = {"height": height * scale, "width": width * scale}
    image = pipeline.video_processor.preprocess(call["image"], **size).to(state.device, pipeline.vae.dtype)
    first, _ = pipeline.prepare_latents(
        image,
        num_channels_latents=channels,
        num_frames=1,
        dtype=state.dtype,
        device=state.device,
        generator=torch.Generator(state.device).manual_seed(0),
        **size,
    )
    patches = pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
    first = pipeline._unpack_latents(first, 1, height, width, *patches)
    return pipeline._pack_latents(torch.cat([first.expand(count, -1, -1, -1, -1), state], 2), *patches)


FAMILIES: dict[str, Family] = {
    "StableDiffusion3Pipeline": Family(rows_may_differ=True),
    "FluxPipeline": Family(rows_may_differ=True, shares_samples=True),
    "FluxKontextPipeline": Family(rows_may_differ=True, shares_samples=True),
    "Flux2Pipeline": Family(rows_may_differ=True, to_argument=_tokens_to_map, shares_samples=True),
    "Flux2KleinPipeline": Family(rows_may_differ=True, to_argument=_tokens_to_map, shares_samples=True),
    "QwenImagePipeline": Family(rows_may_differ=True, guidance_scale="true_cfg_scale", shares_samples=True),
    "QwenImage21Pipeline": Family(rows_may_differ=True, guidance_scale="true_cfg_scale"),
    "QwenImageEditPipeline": Family(one_row=True, guidance_scale="true_cfg_scale"),
    "QwenImageEditPlusPipeline": Family(one_row=True, guidance_scale="true_cfg_scale"),
    "WanPipeline": Family(rows_may_differ=True, shares_samples=True),
    "WanImageToVideoPipeline": Family(rows_may_differ=True, shares_samples=True),
    "SanaPipeline": Family(rows_may_differ=True),
    "HunyuanVideo15Pipeline": Family(rows_may_differ=True, decodes_alone=True),
    "LTX2Pipeline": Family(
        rows_may_differ=True,
        latents=("latents", "audio_latents"),
        attended={"video_to_audio_attn": 0, "audio_to_video_attn": 1},
    ),
    "StableAudio3Pipeline": Family(rows_may_differ=True),
    "LongCatAudioDiTPipeline": Family(rows_may_differ=True, audio_seconds="audio_duration_s"),
    "StableDiffusion3ModularPipeline": Family(rows_may_differ=True),
    "FluxModularPipeline": Family(rows_may_differ=True),
    "AnimaModularPipeline": Family(rows_may_differ=True),
    "ZImageModularPipeline": Family(rows_may_differ=True),
    "LTX25ModularPipeline": Family(rows_may_differ=True, latents=("latents", "audio_latents")),
    "QwenImage21ModularPipeline": Family(rows_may_differ=True, one_prompt=True),
    "Krea2ModularPipeline": Family(rows_may_differ=True),
    "Ideogram4ModularPipeline": Family(rows_may_differ=True),
    "Flux3ModularPipeline": Family(rows_may_differ=True, one_prompt=True, to_argument=_tokens_to_map),
    **dict.fromkeys(
        ("Flux2ModularPipeline", "Flux2KleinModularPipeline", "Flux2KleinBaseModularPipeline"),
        Family(rows_may_differ=True, to_argument=_tokens_to_map),
    ),
    **dict.fromkeys(
        (
            "QwenImageModularPipeline",
            "WanModularPipeline",
            "LTXModularPipeline",
            "FluxKontextModularPipeline",
        ),
        Family(rows_may_differ=True),
    ),
    "LTXPipeline": Family(rows_may_differ=True),
    "LTXImageToVideoPipeline": Family(rows_may_differ=True, to_argument=_after_the_image),
    "HiDreamImagePipeline": Family(trained_as=(".ff_i",)),
    "FluxControlPipeline": Family(one_row=True),
    "WanVACEPipeline": Family(one_row=True),
    "MochiPipeline": Family(rows_may_differ=True, steps=2),
    "Kandinsky5T2VPipeline": Family(to_argument=_beside_an_empty_condition),
    "CogView4Pipeline": Family(rows_may_differ=True),
    "LongCatImagePipeline": Family(rows_may_differ=True),
    "BriaPipeline": Family(rows_may_differ=True),
    "OvisImagePipeline": Family(rows_may_differ=True),
    "HunyuanImagePipeline": Family(rows_may_differ=True),
    "HunyuanVideoPipeline": Family(rows_may_differ=True),
    "SkyReelsV2Pipeline": Family(rows_may_differ=True),
    "ChronoEditPipeline": Family(rows_may_differ=True, shares_samples=True),
    "SanaVideoPipeline": Family(rows_may_differ=True),
    "AceStepPipeline": Family(audio_seconds="audio_duration", lists=("lyrics",)),
}
"""By the name of the pipeline's class."""


def family_of(pipeline: Any) -> Family:
    """The entry of a pipeline, or the rule."""
    entry = FAMILIES.get(name_of(pipeline), Family())
    # Wan 2.2 picks its network by the level, or gives each token a level.
    by_level = pipeline.config.get("boundary_ratio") is not None or pipeline.config.get("expand_timesteps")
    return replace(entry, rows_may_differ=False) if by_level else entry
