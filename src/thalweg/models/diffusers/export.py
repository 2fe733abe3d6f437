"""Trained networks as others read them: adapters for diffusers, adapters for ComfyUI, or the merged pipeline.

Three ways lead adapters into a pipeline, by what its classes can do: `pipeline.load_lora_weights`,
`network.load_lora_adapter`, and peft's own files where diffusers gives a network none (Stable Audio 3).

ComfyUI finds the layers of an adapter by name (Comfy-Org/ComfyUI, comfy/lora.py, `model_lora_keys_unet`) and
adds alpha / rank · B A to their weights (comfy/weight_adapter/lora.py), with a scalar `.alpha` beside;
without one it takes alpha = rank. It has SD3, FLUX.1 and AuraFlow by diffusers' names behind `transformer.`;
Qwen-Image, Z-Image and LTX by the same names behind `diffusion_model.`; Wan by its authors' names; and U-Nets
by kohya's.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from jaxtyping import Float
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models.diffusers.adapters import adapter_file, prefix_of, save_adapters
from thalweg.models.diffusers.model import Adapters, DiffusersModel
from thalweg.models.diffusers.modular import INDEX, Modular, name_of, own
from thalweg.models.diffusers.pipelines import networks, open_pipeline
from thalweg.models.diffusers.policy import DiffusersPolicy

COMFYUI_FILE = "comfyui.safetensors"
PROMPT = Prompt("a red square left of a blue circle")
LEVELS = (0.97, 0.5)
"""Where written and trained networks are compared; Wan 2.2 has a network for each."""


@dataclass(frozen=True)
class AsDiffusers:
    """Adapters that diffusers, or peft, reads."""

    def write(self, policy: DiffusersPolicy, folder: Path) -> list[Path]:
        """The files; alpha and the kind of adapter stand in their metadata."""
        _require_adapters(policy)
        if _knows_adapters(policy.pipeline):
            return save_adapters(policy.networks, folder)
        paths = []
        for component, network in policy.networks.items():
            place = folder / component
            place.mkdir(parents=True)
            config: Any = network.peft_config["default"]  # type: ignore[index]
            config.save_pretrained(place)
            tensors = {f"base_model.model.{name}": tensor for name, tensor in _tensors(network).items()}
            save_file(tensors, place / "adapter_model.safetensors", {"format": "pt"})
            paths += [place / "adapter_config.json", place / "adapter_model.safetensors"]
        return paths

    def read(self, model: DiffusersModel, folder: Path) -> Any:
        """A fresh pipeline with the adapters in it."""
        pipeline = open_pipeline(model)
        for component, network in networks(pipeline).items():
            file = adapter_file(component)
            if isinstance(own(pipeline), LoraBaseMixin):
                second = {"load_into_transformer_2": True} if component == "transformer_2" else {}
                pipeline.load_lora_weights(folder, weight_name=file, **second)  # type: ignore[attr-defined]
            elif isinstance(network, PeftAdapterMixin):
                network.load_lora_adapter(folder, weight_name=file, use_safetensors=True)
            else:
                PeftModel.from_pretrained(network, str(folder / component))
        return pipeline

    def usage(self, policy: DiffusersPolicy) -> list[str]:
        """Lines of Python that read the files from `FOLDER`."""
        lines = []
        for component, network in policy.networks.items():
            file = adapter_file(component)
            if isinstance(own(policy.pipeline), LoraBaseMixin):
                second = ", load_into_transformer_2=True" if component == "transformer_2" else ""
                lines.append(f'pipeline.load_lora_weights(FOLDER, weight_name="{file}"{second})')
            elif isinstance(network, PeftAdapterMixin):
                read = f'load_lora_adapter(FOLDER, weight_name="{file}", use_safetensors=True)'
                lines.append(f"pipeline.{component}.{read}")
            else:
                lines.append(f'peft.PeftModel.from_pretrained(pipeline.{component}, FOLDER + "/{component}")')
        return lines


@dataclass(frozen=True)
class AsComfyUI:
    """Adapters that ComfyUI reads; a file a network, as Wan 2.2's two are two models there."""

    def write(self, policy: DiffusersPolicy, folder: Path) -> list[Path]:
        """The files, in float32."""
        lora = _require_adapters(policy)
        if lora.dora:
            raise UserError("export: DoRA's magnitudes have no place in ComfyUI's layout here; use --merged")
        rename = _comfyui_names(policy.pipeline)
        alpha = lora.alpha * (math.sqrt(lora.rank) if lora.rslora else 1)
        paths = []
        for component, network in policy.networks.items():
            tensors: dict[str, Tensor] = {}
            for name, tensor in _tensors(network).items():
                layer, _, matrix = name.removesuffix(".weight").rpartition(".")
                key = rename(layer)
                tensors[f"{key}.{MATRICES[matrix]}.weight"] = tensor
                tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
            paths.append(folder / _comfyui_file(component))
            paths[-1].write_bytes(save(tensors, {"format": "pt"}))
        return paths

    def read(self, model: DiffusersModel, folder: Path) -> Any:
        """A fresh pipeline whose weights were changed as ComfyUI changes them."""
        pipeline = open_pipeline(model)
        rename = _comfyui_names(pipeline)
        for component, network in networks(pipeline).items():
            merge_pairs(network, load_file(folder / _comfyui_file(component)), rename)
        return pipeline

    def usage(self, policy: DiffusersPolicy) -> list[str]:
        """How the files are used."""
        return [f"# ComfyUI: put {_comfyui_file(c)} into models/loras and load it" for c in policy.networks]


@dataclass(frozen=True)
class AsPipeline:
    """The whole pipeline, adapters merged into its weights, in float32."""

    def write(self, policy: DiffusersPolicy, folder: Path) -> list[Path]:
        """A folder that `from_pretrained` reads; the policy's networks are merged ones from now on."""
        for network in policy.networks.values():
            _merge(network)
        seam = policy.pipeline.scheduler
        policy.pipeline.register_modules(scheduler=policy.stock_scheduler)
        try:
            own(policy.pipeline).save_pretrained(str(folder))
        finally:
            policy.pipeline.register_modules(scheduler=seam)
        return [folder / (INDEX if isinstance(policy.pipeline, Modular) else "model_index.json")]

    def read(self, model: DiffusersModel, folder: Path) -> Any:
        """The pipeline of the folder."""
        return open_pipeline(model.model_copy(update={"path": str(folder), "precision": "float32"}))

    def usage(self, policy: DiffusersPolicy) -> list[str]:
        """Lines of Python that read the files from `FOLDER`."""
        if isinstance(policy.pipeline, Modular):
            return ["pipeline = ModularPipeline.from_pretrained(FOLDER)", "pipeline.load_components()"]
        return ["pipeline = DiffusionPipeline.from_pretrained(FOLDER)"]


Form = AsDiffusers | AsComfyUI | AsPipeline

MATRICES = {"lora_A": "lora_down", "lora_B": "lora_up"}


@torch.no_grad()
def outputs(policy: DiffusersPolicy) -> Float[Tensor, "2 ..."]:
    """Velocities at fixed noise, at both ends of the levels."""
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = policy.encode([PROMPT] * 2)
    return policy.velocity(noise.to(policy.device), torch.tensor(LEVELS), condition).cpu()


def difference(form: Form, model: DiffusersModel, folder: Path, expected: Float[Tensor, "2 ..."]) -> float:
    """How far a fresh pipeline with what was written is from the trained one, relative to its largest
    value.
    """
    policy = DiffusersPolicy(form.read(model, folder), model.model_copy(update={"lora": None}))
    return float((outputs(policy) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def merge_pairs(network: nn.Module, file: Mapping[str, Tensor], rename: Callable[[str], str]) -> None:
    """W + alpha / rank · B A for every layer that the file has a pair for."""
    used = 0
    for name, module in network.named_modules():
        key = rename(name)
        down = file.get(f"{key}.lora_down.weight")
        if down is None or not isinstance(module, nn.Linear):
            continue
        up, alpha = file[f"{key}.lora_up.weight"], float(file[f"{key}.alpha"])
        with torch.no_grad():
            module.weight += (alpha / len(down) * up.float() @ down.float()).to(module.weight)
        used += 3
    assert used == len(file)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    found = get_peft_model_state_dict(network)
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in found.items()}


def _merge(network: nn.Module) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            network.set_submodule(name, module.get_base_layer())
    # Else `save_pretrained` would look for adapters.
    network._hf_peft_config_loaded = False  # type: ignore[assignment]


def _require_adapters(policy: DiffusersPolicy) -> Adapters:
    if policy.model.lora is None:
        raise UserError(
            "export: the model was trained whole (model.lora=null), so there are no adapters; use --merged"
        )
    return policy.model.lora


def _knows_adapters(pipeline: Any) -> bool:
    return isinstance(own(pipeline), LoraBaseMixin) or all(
        isinstance(network, PeftAdapterMixin) for network in networks(pipeline).values()
    )


def _comfyui_file(component: str) -> str:
    return COMFYUI_FILE.replace(".", f"{component.removeprefix(prefix_of(component))}.")


def _comfyui_names(pipeline: Any) -> Callable[[str], str]:
    name = name_of(pipeline)
    if name not in COMFYUI:
        raise UserError(
            f"export: no layout of ComfyUI's is known here for {name}; known are {', '.join(COMFYUI)}; leave "
            "--layout out, or use --merged"
        )
    return COMFYUI[name]


def _behind_transformer(layer: str) -> str:
    return f"transformer.{layer}"


def _behind_diffusion_model(layer: str) -> str:
    return f"diffusion_model.{layer}"


def _kohya(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


WAN = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.to_out\.0$", ".o"),
    (r"\.add_([kv])_proj$", r".\1_img"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
)
"""Names of diffusers, and those of Wan's authors."""


def _wan(layer: str) -> str:
    for pattern, name in WAN:
        layer = re.sub(pattern, name, layer)
    return f"diffusion_model.{layer}"


COMFYUI: dict[str, Callable[[str], str]] = {
    "StableDiffusion3Pipeline": _behind_transformer,
    "FluxPipeline": _behind_transformer,
    "FluxKontextPipeline": _behind_transformer,
    "AuraFlowPipeline": _behind_transformer,
    "QwenImagePipeline": _behind_diffusion_model,
    "QwenImageEditPipeline": _behind_diffusion_model,
    "QwenImageEditPlusPipeline": _behind_diffusion_model,
    "ZImagePipeline": _behind_diffusion_model,
    "LTXPipeline": _behind_diffusion_model,
    "LTX2Pipeline": _behind_diffusion_model,
    "WanPipeline": _wan,
    "WanImageToVideoPipeline": _wan,
    "StableDiffusionPipeline": _kohya,
    "StableDiffusionXLPipeline": _kohya,
}
"""(layer as diffusers names it) -> ComfyUI's key, by the pipeline's class."""
