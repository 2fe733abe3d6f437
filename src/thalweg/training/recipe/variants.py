"""Full-size variants of recipes: which folder of recipes belongs to a model.

A folder is named after its model (`flux1-dev`), and `flux1-dev/mix-grpo` is what `mix-grpo` becomes on it. A
pipeline saved in a folder is known by the class in its model_index.json, one on the hub by its name.
"""

import json
from pathlib import Path
from typing import Any

HUB = {
    "black-forest-labs/FLUX.1-dev": "flux1-dev",
    "black-forest-labs/FLUX.2-dev": "flux2-dev",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein",
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": "sana",
    "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v": "hunyuanvideo-1.5",
    "Lightricks/LTX-2": "ltx-2",
    "Qwen/Qwen-Image": "qwen-image",
    "Qwen/Qwen-Image-Edit-2509": "qwen-image-edit-plus",
    "stabilityai/stable-audio-3-medium": "stable-audio-3",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "Tongyi-MAI/Z-Image": "z-image",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan2.1",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan2.2",
}
PIPELINES = {
    "Flux2KleinPipeline": "flux2-klein",
    "Flux2Pipeline": "flux2-dev",
    "FluxPipeline": "flux1-dev",
    "HunyuanVideo15Pipeline": "hunyuanvideo-1.5",
    "LTX2Pipeline": "ltx-2",
    "QwenImageEditPlusPipeline": "qwen-image-edit-plus",
    "QwenImagePipeline": "qwen-image",
    "SanaPipeline": "sana",
    "StableAudio3Pipeline": "stable-audio-3",
    "StableDiffusion3Pipeline": "sd3.5-medium",
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "WanPipeline": "wan2.1",
    "ZImagePipeline": "z-image",
}
LAYERS_OF_SD35_LARGE = 38


def folder_of(model: str) -> str | None:
    """The folder of recipes for the pipeline in a folder or on the hub; None where there is none."""
    path = Path(model)
    if not path.is_dir():
        return HUB.get(model)
    index = _read(path / "model_index.json")
    name = index.get("_class_name")
    if name == "WanPipeline" and (index.get("transformer_2") or [None])[0] is not None:
        return "wan2.2"
    network = _read(path / "transformer" / "config.json")
    if name == "StableDiffusion3Pipeline" and network.get("num_layers") == LAYERS_OF_SD35_LARGE:
        return "sd3.5-large"
    return PIPELINES.get(str(name))


def width_of(model: str) -> int | None:
    """The width of the network of a pipeline in a folder; None where it is not to be seen."""
    network = _read(Path(model) / "transformer" / "config.json")
    heads, size = network.get("num_attention_heads"), network.get("attention_head_dim")
    return heads * size if isinstance(heads, int) and isinstance(size, int) else network.get("dim")


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none: opening the pipeline says what is wrong with it."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
