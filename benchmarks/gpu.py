"""Speed of full-size networks with random weights: no download, no prompts, the library's own policy and
rollout.

    python benchmarks/gpu.py [sd3.5-medium flux1-dev] [--batch 4] [--steps 10] [--checkpointing]
    python benchmarks/gpu.py --tiny        # seconds on a CPU: does it run?

One JSON line a network:

    images_per_second          of a rollout of `--steps` steps without noise, no decoding
    trained_steps_per_second   forward, loss and backward of one step of one image, adapters of rank 32
    peak_memory_gb             of rollout and update
    mfu/rollout, mfu/update    FLOPs that torch counts in the passes, over time, over the rate of a large
    matrix product in the same precision on the same device

Text encoders are left out: random embeddings of their shapes stand in for them.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from thalweg.core.values import Prompt
from thalweg.flow import Shifted
from thalweg.models.diffusers.model import Adapters, DiffusersModel
from thalweg.models.diffusers.pipelines import DTYPES, prepare
from thalweg.models.diffusers.policy import DiffusersPolicy
from thalweg.rollout import Deterministic, Rollout, Root, grow
from thalweg.training.memory import peak_megabytes


@dataclass(frozen=True)
class Network:
    """A network in numbers, and the text that it is given."""

    pipeline: type
    kind: type
    config: dict[str, Any]
    text_tokens: int
    text_width: int
    pooled_width: int
    side: int
    guidance_scale: float


SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "qk_norm": "rms_norm"}
NETWORKS = {
    "sd3.5-medium": Network(
        diffusers.StableDiffusion3Pipeline,
        diffusers.SD3Transformer2DModel,
        SD3
        | {
            "dual_attention_layers": tuple(range(13)),
            "pos_embed_max_size": 384,
            "in_channels": 16,
            "sample_size": 128,
        },
        333,
        4096,
        2048,
        512,
        4.5,
    ),
    "flux1-dev": Network(
        diffusers.FluxPipeline,
        diffusers.FluxTransformer2DModel,
        {"guidance_embeds": True},
        512,
        4096,
        768,
        512,
        3.5,
    ),
}
TINY_TEXT = {"text_tokens": 16, "text_width": 32, "pooled_width": 32}
TINY = {
    "sd3.5-medium": {
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "caption_projection_dim": 64,
        "dual_attention_layers": (),
    },
    "flux1-dev": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    },
}


def with_random_text(network: Network) -> type:
    """The stock pipeline's class, whose prompts are random numbers."""

    def encode_prompt(self: Any, prompt: Any = None, *args: Any, **options: Any) -> Any:
        rows, draw = len(prompt), torch.Generator().manual_seed(0)
        like = next(self.transformer.parameters())
        text = torch.randn(1, network.text_tokens, network.text_width, generator=draw).to(like)
        text, pooled = text.repeat(rows, 1, 1), torch.randn(1, network.pooled_width, generator=draw).to(like)
        if network.pipeline is diffusers.FluxPipeline:
            return text, pooled.repeat(rows, 1), torch.zeros(network.text_tokens, 3).to(like)
        return text, -text, pooled.repeat(rows, 1), -pooled.repeat(rows, 1)

    # The name is what the table of families goes by.
    return type(network.pipeline.__name__, (network.pipeline,), {"encode_prompt": encode_prompt})


def policy_of(name: str, tiny: bool, device: str, precision: str, checkpointing: bool) -> DiffusersPolicy:
    """The network on its device behind the stock pipeline."""
    network = replace(NETWORKS[name], **TINY_TEXT) if tiny else NETWORKS[name]
    config = network.config | (TINY[name] if tiny else {})
    widths = {"joint_attention_dim": network.text_width, "pooled_projection_dim": network.pooled_width}
    torch.manual_seed(0)
    with torch.device(device):
        transformer = network.kind(**config, **widths).to(DTYPES[precision])
    names = [f"text_encoder{n}" for n in ("", "_2", "_3")] + [f"tokenizer{n}" for n in ("", "_2", "_3")]
    absent = dict.fromkeys(
        names
        if network.pipeline is diffusers.StableDiffusion3Pipeline
        else [n for n in names if not n.endswith("3")]
    )
    pipeline = with_random_text(network)(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            norm_num_groups=4,
        ).to(DTYPES[precision]),
        **absent,
    )
    model = DiffusersModel(
        path=name,
        height=64 if tiny else network.side,
        width=64 if tiny else network.side,
        guidance_scale=network.guidance_scale,
        precision=precision,  # type: ignore[arg-type]
        lora=Adapters(rank=32, alpha=32),
        gradient_checkpointing=checkpointing,
        device=device,
    )
    return DiffusersPolicy(prepare(pipeline, device), model)


def waited(device: torch.device) -> float:
    """The clock, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Wall-clock seconds, the median after one warm-up."""
    taken = []
    for _ in range(repeats + 1):
        start = waited(device)
        work()
        taken.append(waited(device) - start)
    return sorted(taken[1:])[repeats // 2]


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ a, device, repeats)


def flops_of(work: Callable[[], Any]) -> float:
    """FLOPs of matrix products and attention, as torch counts them."""
    with FlopCounterMode(display=False) as counted:
        work()
    return float(counted.get_total_flops())


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one network."""
    policy = policy_of(name, options.tiny, options.device, options.precision, options.checkpointing)
    device, batch = policy.device, options.batch
    rollout = Rollout(
        plan=Deterministic(), group_size=batch, steps=options.steps, schedule=Shifted(), micro_batch=batch
    )
    roots, prompts = [Root(0, i, i, 0) for i in range(batch)], [Prompt("")]
    condition = policy.encode(prompts).index(torch.zeros(batch, dtype=torch.int64))
    x = torch.randn(batch, *policy.latent_shape, device=device).to(policy.latent_dtype)
    sigma, parameters = torch.full((batch,), 0.6), list(policy.weights.parameters.values())

    def sample() -> None:
        grow(policy, prompts, roots, rollout, seed=0, iteration=0)

    def update() -> None:
        loss = policy.velocity(x, sigma, condition).square().mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    of_rollout, of_update = flops_of(sample), flops_of(update)
    drawing, learning = (seconds(work, device, options.repeats) for work in (sample, update))
    rate = matmul_rate(device, DTYPES[options.precision], 256 if options.tiny else 8192, options.repeats)
    return {
        "network": name + (" (tiny)" if options.tiny else ""),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": options.precision,
        "batch": batch,
        "images_per_second": batch / drawing,
        "trained_steps_per_second": batch / learning,
        "peak_memory_gb": peak_megabytes(device) * 2**20 / 1e9,
        "matmul_tflops": rate / 1e12,
        "rollout_tflop": of_rollout / 1e12,
        "update_tflop": of_update / 1e12,
        "mfu/rollout": of_rollout / drawing / rate,
        "mfu/update": of_update / learning / rate,
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default=None)
    options = parser.parse_args(arguments)
    options.precision = options.precision or ("float32" if options.tiny else "bfloat16")
    return options


if __name__ == "__main__":
    given = parsed()
    for each in given.networks:
        print(
            json.dumps(
                {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in measure(each, given).items()}
            )
        )
