"""Which parameters are trained: adapters on the repeated blocks of the networks, or everything."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole
from thalweg.models.diffusers.model import Adapters


def add_adapters(networks: Mapping[str, nn.Module], lora: Adapters | None) -> dict[str, nn.Parameter]:
    """The trained parameters by name, `transformer.` or `transformer_2.` in front."""
    for network in networks.values():
        if lora is None:
            network.requires_grad_(True)
        else:
            _inject(network, lora)
    return {
        f"{component}.{name}": parameter
        for component, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def repeated_linears(network: nn.Module) -> list[str]:
    """Names of the linear layers inside the blocks of the network; a U-Net's middle one is no list."""
    blocks = [
        name
        for name, child in network.named_children()
        if isinstance(child, nn.ModuleList) or name == "mid_block"
    ]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in blocks
    ]


def _inject(network: nn.Module, lora: Adapters) -> None:
    linears = repeated_linears(network)
    if lora.targets is not None:
        linears = [n for n in linears if n.endswith(lora.targets)]
    if not linears:
        raise UserError(
            f"model.lora.targets={list(lora.targets or ())}: {type(network).__name__} has no such linear "
            "layer in its blocks; leave targets out to take all"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=linears,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # adapters start the same in every process and every run
        inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates would round to nothing in bfloat16


def save_adapters(networks: Mapping[str, nn.Module], folder: Path) -> list[Path]:
    """Write adapters as diffusers reads them: `pipeline.load_lora_weights(folder)`; a file a network.

    The second network's file is read with `load_into_transformer_2=True`.
    """
    paths = []
    for component, network in networks.items():
        prefix = prefix_of(component)
        tensors = {
            f"{prefix}.{name}": tensor.detach().float().cpu().contiguous()
            for name, tensor in get_peft_model_state_dict(network).items()
        }
        numbers = network.peft_config["default"].to_dict()  # type: ignore[index, union-attr]
        # Without them a reader takes alpha = rank.
        described = {f"{prefix}.{key}": value for key, value in numbers.items() if _is_plain(value)}
        described[f"{prefix}.target_modules"] = sorted(numbers["target_modules"])
        paths.append(folder / adapter_file(component))
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(described)}
        write_whole(paths[-1], save(tensors, metadata))
    return paths


def prefix_of(component: str) -> str:
    """What stands before the names of layers; the second network's file has the first one's."""
    return "unet" if component == "unet" else "transformer"


def adapter_file(component: str) -> str:
    """The name of a network's file."""
    return f"pytorch_lora_weights{component.removeprefix(prefix_of(component))}.safetensors"


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list | dict) or value is None
