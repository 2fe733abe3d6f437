"""What a full-size run will need, before its weights are there: memory of a card, and time. An estimate.

    memory = frozen + trained + activations + stored
    frozen       bytes of all weights that are not trained: networks, text encoders, decoder
    trained      (weight + gradient + two moments of AdamW) · 4 bytes = 16 · n,  and 4 · n a named copy
    activations  34 · s · D · L · (bytes / 2) a row with gradient (Korthikanti et al. 2022, arXiv:2205.05198,
                 Eq. 1 without the attention matrix, which fused attention never stores); with checkpointing
                 2 · s · D · (L + 17) · (bytes / 2): the inputs of all layers, and one layer whole
    stored       states and log-probs between rollout and update: the batch plan's

    time = forwards · (2 P s + 4 s² D L) / (U · FLOP/s),   P parameters of a network; a backward counts as one
    forward with adapters (no gradient of frozen weights) and two without, checkpointing as one more

n trained parameters: with adapters of rank r, r · Σ (inputs + outputs) over the linear layers that get one.
s tokens of a row: image, video or sound, and text. D width, L layers, U the share of a card's peak that is
used, 0.35. Not counted: the decoder's activations, rewards, evaluation, the allocator's and CUDA's own 1 to
3 GB. With `parallel.weights: fsdp` networks and what is trained are cut over the processes; blocks that are
gathered for a pass are not counted. Never checked on a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.core.values import Prompt
from thalweg.models import DiffusersModel
from thalweg.models.sizes import words_of
from thalweg.training.data.sizes import all_sizes
from thalweg.training.preflight.plan import BatchPlan, plan_of
from thalweg.training.recipe.schema import Recipe
from thalweg.training.recipe.variants import folder_of, width_of

CARDS = {
    "24 GB (RTX 4090)": (24e9, 165e12),
    "48 GB (L40S)": (48e9, 362e12),
    "80 GB (H100)": (80e9, 989e12),
    "141 GB (H200)": (141e9, 989e12),
}
"""Memory, and FLOP/s of dense bfloat16 with float32 sums, from the vendor's data sheets."""
UTILISATION = 0.35
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Size:
    """A pipeline in numbers.

    `parameters`, `adapter_sides` and `attention_sides` were counted in diffusers 0.42.1 on networks built
    without memory, from their default configuration where that is the released model's and else from the one
    beside it in this table. `frozen_parameters` and `text_tokens` are approximate and not counted.
    """

    parameters: float
    """Of one network."""
    adapter_sides: int
    """Σ (inputs + outputs) of all linear layers of the blocks: adapter parameters for each rank."""
    attention_sides: int
    """The same of the layers in `ATTENTION` alone."""
    width: int
    layers: int
    frozen_parameters: float
    """Text encoders and decoder."""
    text_tokens: int
    """Text tokens in the network's sequence; 0 where text enters by cross-attention alone."""
    pixels: int = 16
    """Side of the square of pixels that is a token."""
    frames: int = 1
    """Frames of a video in a token; the first frame stands alone."""
    channels: int = 64
    """Latent elements in a token."""
    tokens_per_second: float = 0.0
    """Of sound."""
    side: int = 1024
    """Height and width where the recipe gives none."""
    guided_by_passes: bool = True
    """Guidance above 1 takes a second pass; false: its strength is an input."""
    networks: int = 1

    def tokens(self, model: DiffusersModel) -> int:
        """Tokens of a sample, without text."""
        if self.tokens_per_second and not self.pixels:
            return math.ceil(self.tokens_per_second * (model.audio_seconds or 10))
        height, width = (model.height or self.side) // self.pixels, (model.width or self.side) // self.pixels
        frames = 1 if self.frames == 1 else ((model.num_frames or 81) - 1) // self.frames + 1
        return height * width * frames

    def passes(self, model: DiffusersModel) -> int:
        """Rows of a network call for one velocity."""
        guided = model.guidance_scale is None or model.guidance_scale > 1
        return 2 if self.guided_by_passes and guided else 1


SIZES = {
    # 24 layers, 24 heads of 64, dual attention in the first 13; CLIP L and G, T5-XXL.
    "sd3.5-medium": Size(2.243e9, 2_038_272, 454_656, 1536, 24, 5.58e9, 333),
    # 38 layers, 38 heads of 64.
    "sd3.5-large": Size(8.057e9, 4_581_888, 739_328, 2432, 38, 5.58e9, 333),
    # CLIP L, T5-XXL. 19 double and 38 single blocks.
    "flux1-dev": Size(11.90e9, 5_369_856, 1_167_360, 3072, 57, 4.97e9, 512, guided_by_passes=False),
    # Mistral Small 3.2. 8 double and 48 single blocks.
    "flux2-dev": Size(
        32.22e9, 6_291_456, 393_216, 6144, 56, 24.1e9, 512, channels=128, guided_by_passes=False
    ),
    # 5 double and 20 single blocks, 24 heads of 128; Qwen3 4B.
    "flux2-klein": Size(3.876e9, 1_505_280, 122_880, 3072, 25, 4.1e9, 512, channels=128),
    # Qwen2.5-VL 7B.
    "qwen-image": Size(20.43e9, 9_216_000, 1_474_560, 3072, 60, 8.4e9, 256),
    # The image to edit is as many tokens again: its sequence is counted as text.
    "qwen-image-edit-plus": Size(20.43e9, 9_216_000, 1_474_560, 3072, 60, 8.4e9, 256 + 4096),
    # Qwen3 4B. 30 layers and four refiners.
    "z-image": Size(6.155e9, 2_980_352, 1_044_480, 3840, 34, 4.1e9, 128),
    # Gemma 2 2B. A token is 32 x 32 pixels.
    "sana": Size(1.605e9, 716_800, 716_800, 2240, 20, 2.9e9, 0, pixels=32, channels=32),
    # 30 layers, 12 heads of 128; UMT5-XXL.
    "wan2.1": Size(1.419e9, 1_367_040, 737_280, 1536, 30, 5.8e9, 0, frames=4),
    # Two networks, one for each end of the noise levels.
    "wan2.2": Size(14.29e9, 4_792_320, 3_276_800, 5120, 40, 5.8e9, 0, frames=4, networks=2),
    # Qwen2.5-VL 7B. A token is 16 x 16 pixels of 4 frames.
    "hunyuanvideo-1.5": Size(8.327e9, 5_529_600, 884_736, 2048, 54, 9.6e9, 1000, frames=4, channels=32),
    # Gemma 3 12B. A token is 32 x 32 pixels of 8 frames.
    "ltx-2": Size(18.88e9, 9_633_792, 6_684_672, 4096, 48, 13.5e9, 0, pixels=32, frames=8, channels=128),
    # A U-Net has a width for each resolution: side of a token and layers are such that the FLOPs of a pass
    # come
    # out as torch's FlopCounterMode counts them at the released size, 0.803e12 and 6.761e12. CLIP L; and G.
    "sd15": Size(0.8595e9, 422_336, 199_296, 1280, 458, 0.207e9, 0, pixels=28, channels=51, side=512),
    "sdxl": Size(2.567e9, 2_695_360, 1_451_520, 1280, 280, 0.902e9, 0, pixels=32),
    "stable-audio-3": Size(
        1.453e9, 1_259_544, 110_592, 1536, 24, 1.0e9, 0, pixels=0, channels=256, tokens_per_second=21.5
    ),
}
"""By the folder of recipes."""


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of one process."""

    plan: BatchPlan
    tokens: int
    frozen: float
    trained_parameters: float
    trained: float
    activations: float
    forwards: float
    """Network passes of an iteration, gradients and recomputation counted as passes."""
    flops: float
    """Of an iteration."""

    @property
    def memory(self) -> float:
        return self.frozen + self.trained + self.activations + self.plan.stored_bytes

    def seconds(self, flops_per_second: float) -> float:
        """Of an iteration, without rewards, decoding and evaluation."""
        return self.flops / (UTILISATION * flops_per_second)


def size_of(model: Any) -> Size | None:
    """The numbers of a real model, None for one that is not in the table."""
    if not isinstance(model, DiffusersModel):
        return None
    size = SIZES.get(folder_of(model.path) or "")
    # A family's other sizes, saved in a folder, can be opened and counted.
    return size if size is None or width_of(model.path) in (None, size.width) else None


def estimate(recipe: Recipe, size: Size, processes: int = 1, prompts: Sequence[Prompt] = ()) -> Estimate:
    """What one process of a run needs, if all samples had the largest size that is asked for."""
    model = recipe.model
    assert isinstance(model, DiffusersModel)
    sized = [model.model_copy(update=words_of(asked)) for asked in all_sizes(recipe, prompts)]
    model = max(sized, key=size.tokens)
    per_element, passes = BYTES[model.precision], size.passes(model)
    total = size.parameters * size.networks
    trained = total if model.lora is None else float(adapter_parameters(model, size))
    # Weight, gradient and two moments in float32, and a copy for each named set.
    shards = recipe.parallel.shards(processes)
    weight_bytes = round(4 * trained * (4 + len(recipe.weights)) / shards)
    plan = plan_of(recipe, size.tokens(model) * size.channels, passes, weight_bytes, processes)
    frozen = (size.frozen_parameters + (0 if model.lora is None else total / shards)) * per_element
    tokens = size.tokens(model) + size.text_tokens
    layer = tokens * size.width * (per_element / 2) / recipe.parallel.ulysses
    kept = (
        2 * layer * (size.layers + 17) if model.gradient_checkpointing else 34 * layer * size.layers
    ) * passes
    # A rollout keeps no activations of earlier layers.
    update, rollout = kept * recipe.optim.micro_batch, 34 * layer * passes * recipe.rollout.micro_batch
    backward = (1 if model.lora is not None else 2) + model.gradient_checkpointing
    forwards = (plan.evaluations + backward * plan.gradient_passes) / processes
    of_pass = 2 * size.parameters * tokens + 4 * tokens**2 * size.width * size.layers
    return Estimate(
        plan=plan,
        tokens=tokens,
        frozen=frozen,
        trained_parameters=trained,
        trained=float(plan.weight_bytes),
        activations=max(update, rollout),
        forwards=forwards,
        flops=forwards * of_pass,
    )


def adapter_parameters(model: DiffusersModel, size: Size) -> int:
    """rank · Σ (inputs + outputs), over the attention's own layers where the targets are those, or over all.

    Other targets lie between the two: the larger number is taken.
    """
    assert model.lora is not None
    few = model.lora.targets is not None and set(model.lora.targets) <= set(ATTENTION)
    return model.lora.rank * (size.attention_sides if few else size.adapter_sides) * size.networks


def report(estimated: Estimate, iterations: int) -> list[str]:
    """The estimate in lines."""
    e, millions = estimated, estimated.trained_parameters / 1e6
    frozen, trained, activations, stored, memory = (
        f"{part / 1e9:.1f}" for part in (e.frozen, e.trained, e.activations, e.plan.stored_bytes, e.memory)
    )
    lines = [
        "an estimate from a formula (training/estimate.py), not checked on a GPU",
        f"memory: {memory} GB = {frozen} frozen weights + {trained} for {millions:.0f} M trained parameters "
        f"+ {activations} activations of {e.tokens} tokens + {stored} stored states; 1 to 3 GB more for CUDA",
    ]
    for card, (memory, speed) in CARDS.items():
        fits = "fits" if e.memory + 3e9 < memory else "tight" if e.memory < memory else "does NOT fit"
        hours = e.seconds(speed) * iterations / 3600
        lines.append(
            f"{card}: {fits}; {e.seconds(speed):.0f} s an iteration, {hours:.0f} h in all, at "
            f"{UTILISATION:.0%} of its peak and without rewards, decoding and evaluation"
        )
    return lines
