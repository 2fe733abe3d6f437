"""The miniature model as a policy: an embedded world's network, trained whole or through LoRA.

Latents are pixels in [-1, 1]. Shapes: B rows, C H W pixels, L text tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.values import Condition, Prompt
from thalweg.models.contract import Passes
from thalweg.models.miniature.network import Miniature, MiniatureConfig
from thalweg.models.weights import NamedWeights
from thalweg.worlds import find_world

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


class LoRA(Part):
    """Low-rank adapters on the linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """Updates are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out", "to_hidden", "modulation")
    """Names of the linear layers that get one."""


class MiniatureModel(Part):
    """A small network of an embedded world; learns on a CPU within minutes."""

    kind: Literal["miniature"] = "miniature"
    world: str = "scenes"
    """Which world's base model."""
    lora: LoRA | None = None
    """Train adapters of this size; without, all weights are trained."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """w: v = v_uncond + w (v_cond - v_uncond), in rollout, training and evaluation alike; 1 takes one
    pass.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrix products of the network are computed in."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one forward more."""
    device: str = "cpu"

    @field_validator("world")
    @classmethod
    def _known(cls, name: str) -> str:
        return find_world(name).name

    def load(self) -> "MiniaturePolicy":
        """The world's base model as a policy."""
        weights = find_world(self.world).weights
        if not weights.is_file():
            raise UserError(
                f"model.world='{self.world}': its weights {weights.name} are missing from the installation; "
                f"reinstall thalweg, or make them with scripts/pretrain_{self.world}.py"
            )
        return MiniaturePolicy(load_network(weights), self)


def load_network(weights: Path) -> Miniature:
    """The network a safetensors file holds, sizes from its metadata."""
    with safe_open(weights, framework="pt") as file:
        config = MiniatureConfig.model_validate_json((file.metadata() or {})["config"])
    network = Miniature(config)
    network.load_state_dict({name: t.float() for name, t in load_file(weights).items()})
    return network


class MiniaturePolicy:
    """Fulfils `models.contract.Policy`."""

    def __init__(self, network: torch.nn.Module, model: MiniatureModel) -> None:
        self.model, self.world = model, find_world(model.world)
        self.device = torch.device(model.device)
        self.latent_shape: tuple[int, ...] = self.world.image_shape
        self.latent_dtype = torch.float32
        self.passes = Passes()
        self.passes_per_velocity = 1 if model.guidance_scale == 1 else 2
        self.network = network.to(self.device).eval()
        if model.lora is not None:
            from peft import LoraConfig, inject_adapter_in_model  # loads slowly

            adapter = LoraConfig(
                r=model.lora.rank,
                lora_alpha=model.lora.alpha,
                target_modules=list(model.lora.targets),  # type: ignore[arg-type]
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # adapters start the same in every process and every run
                inject_adapter_in_model(adapter, self.network)
        self.networks = {"network": self.network}
        self.weights = NamedWeights({n: p for n, p in self.network.named_parameters() if p.requires_grad})

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        return Condition({"tokens": self.world.tokenize([p.text for p in prompts]).to(self.device)})

    def velocity(
        self, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B ..."]:
        tokens, sigma = condition.tensors["tokens"], sigma.to(x.device)
        words = condition.tensors.get("embedding")
        scale = self.weights.guidance_scale(self.model.guidance_scale)
        self.passes.evaluations += len(x) * (1 if scale == 1 else 2)
        if scale == 1:
            return self.weights.watch(self._forward(x, sigma, tokens, words))
        nothing = torch.zeros_like(tokens)
        both = self._forward(
            torch.cat([x, x]),
            torch.cat([sigma, sigma]),
            torch.cat([nothing, tokens]),
            None if words is None else torch.cat([self.network.words(nothing), words]),  # type: ignore[operator]
        )
        unconditional, conditional = both.chunk(2)
        return self.weights.watch(unconditional + scale * (conditional - unconditional))

    def embed(self, condition: Condition) -> Condition:
        tokens = condition.tensors["tokens"]
        words = self.network.words(tokens).float()  # type: ignore[operator]
        return Condition({"tokens": tokens, "embedding": words, "content": (tokens != 0).float()})

    def _forward(self, x: Tensor, sigma: Tensor, tokens: Tensor, words: Tensor | None) -> Tensor:
        dtype = PRECISIONS[self.model.precision]
        with torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            if self.model.gradient_checkpointing and torch.is_grad_enabled():
                return checkpoint(self.network, x, sigma, tokens, words, use_reentrant=False).float()  # type: ignore[union-attr]
            return self.network(x, sigma, tokens, words).float()

    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        return (latents.cpu() * 0.5 + 0.5).clamp(0, 1)

    def read(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B ..."]:
        return (2 * images.float() - 1).to(self.device)
