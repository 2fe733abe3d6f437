"""Opening a pipeline: a folder or a name on the hub, and what a user can get wrong about it."""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from inspect import signature, unwrap
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import hf_hub_download, snapshot_download
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.values import Size
from thalweg.models.diffusers.families import Family, family_of
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.modular import INDEX, Modular, name_of, open_modular
from thalweg.models.diffusers.pictures import read_pictures
from thalweg.models.sizes import KEYS, words_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NETWORKS = ("transformer", "transformer_2", "unet")
FRAMES_PER_LATENT = ("scale_factor_temporal", "temporal_compression_ratio")
"""What pipelines call, behind `vae_`, the frames of a latent one; the first frame has one of its own."""
FLOW_MAPS = ("flow_map", "use_meanflow")
"""Settings of networks that are told the level a step leads to beside the one it starts from."""


def open_pipeline(model: DiffusersModel) -> Any:
    """The stock pipeline, frozen, in evaluation mode, on its device."""
    folder = Path(model.path)
    is_classic = _holds(model, "model_index.json")
    is_modular = not is_classic and _holds(model, INDEX)
    if folder.exists() and not is_classic and not is_modular:
        raise UserError(
            f"model.path='{model.path}': no pipeline there (model_index.json is missing, and {INDEX}); give "
            "the folder that `save_pretrained` wrote"
        )
    if not folder.exists() and model.path.count("/") != 1:
        raise UserError(
            f"model.path='{model.path}': no such folder; give a pipeline's folder, or owner/name on the hub"
        )
    if not is_classic and not is_modular:
        raise UserError(
            f"model.path='{model.path}': no such folder, and the hub has none of that name or cannot be "
            "reached; check the name, and log in with `hf auth login` where it is gated"
        )
    try:
        if is_modular:
            is_here = folder.exists()
            there = folder if is_here else Path(snapshot_download(model.path, revision=model.revision))
            pipeline: Any = open_modular(there, DTYPES[model.precision], only_here=is_here)
        else:
            pipeline = DiffusionPipeline.from_pretrained(
                model.path,
                revision=model.revision,
                dtype=DTYPES[model.precision],
                local_files_only=folder.exists(),
                use_safetensors=True,
            )
    except UserError:
        raise
    except (ImportError, AttributeError, NameError) as error:
        raise UserError(
            f"model.path='{model.path}': its pipeline needs what is not here ({_first_line(error)}); "
            "install that, or a newer diffusers"
        ) from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        way_out = "save it again" if folder.exists() else "see whether the hub can be reached"
        raise UserError(
            f"model.path='{model.path}': cannot be read ({_first_line(error)}); {way_out}"
        ) from error
    _require_device(model.device)
    return prepare(pipeline, model.device)


def _holds(model: DiffusersModel, file: str) -> bool:
    """Whether the folder has the file, or else the repository of that name on the hub, or in its cache."""
    folder = Path(model.path)
    if folder.exists() or model.path.count("/") != 1:
        return (folder / file).is_file()
    try:
        return Path(hf_hub_download(model.path, file, revision=model.revision)).is_file()
    except (OSError, ValueError):
        return False


def prepare(pipeline: Any, device: str = "cpu") -> Any:
    """Freeze every component, switch dropout off, and silence the progress bar."""
    if not networks(pipeline):
        raise UserError(
            f"model: {name_of(pipeline)} has no component 'transformer' or 'unet' to train; only "
            "pipelines with one are known"
        )
    for component, network in networks(pipeline).items():
        config: Any = network.config
        if any(config.get(setting) for setting in FLOW_MAPS):
            raise UserError(
                f"model: the {component} of {name_of(pipeline)} is a flow map, which is told where each step "
                "leads and so has no velocity; train the model that it was distilled from"
            )
    if not callable(getattr(pipeline, "encode_prompt", None)):
        raise UserError(
            f"model: {name_of(pipeline)} has no `encode_prompt`; such pipelines cannot be trained yet"
        )
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    trained = family_of(pipeline).trained_as
    for network in networks(pipeline).values():
        for name, module in network.named_modules():
            # The module alone: what is inside it stays in evaluation mode.
            module.training = name.endswith(trained)
    pipeline.set_progress_bar_config(disable=True)
    # LTX-2 warns of latents in its own layout, at every call.
    logging.getLogger(type(pipeline).__module__).addFilter(lambda r: "packed" not in r.getMessage())
    pipeline.to(device)
    return pipeline


def networks(pipeline: Any) -> dict[str, nn.Module]:
    """The denoising networks: one, or two that share the noise levels; some pipelines call theirs unet."""
    found = {name: getattr(pipeline, name, None) for name in NETWORKS}
    return {name: network for name, network in found.items() if isinstance(network, nn.Module)}


def arguments(pipeline: Any, model: DiffusersModel) -> dict[str, Any]:
    """What every call of the pipeline gets besides states and prompts; refuses what the pipeline lacks."""
    family = family_of(pipeline)
    sides = {key: getattr(model, key) for key in KEYS}
    named: dict[str, tuple[str, Any]] = {
        **{f"model.{key}": (argument, sides[key]) for key, argument in _words(family).items()},
        "model.guidance_scale": (family.guidance_scale, model.guidance_scale),
        "model.max_sequence_length": ("max_sequence_length", model.max_sequence_length),
    }
    named = {place: given for place, given in named.items() if given[1] is not None}
    named |= {f"model.call.{key}": (key, value) for key, value in model.call.items()}
    problems = _refused(pipeline, named) + _off_the_grid(pipeline, sides, "model.")
    if problems:
        raise UserError("\n".join(problems))
    given = {key: read_pictures(key, value) for key, value in named.values()}
    _require_start_from_noise(pipeline, given)
    if isinstance(pipeline, Modular):
        pipeline.require_components(given)
    return given


def arguments_of_size(pipeline: Any, size: Size) -> dict[str, Any]:
    """What the call gets for samples of this size; refuses what the pipeline cannot make."""
    asked, words = words_of(size), _words(family_of(pipeline))
    named: dict[str, tuple[str, Any]] = {key: (words[key], value) for key, value in asked.items()}
    problems = _refused(pipeline, named) + _off_the_grid(pipeline, asked, "")
    if problems:
        raise UserError("; ".join(problems))
    return dict(named.values())


def _words(family: Family) -> dict[str, str]:
    """The arguments of a call for a size, by our names."""
    return {key: family.audio_seconds if key == "audio_seconds" else key for key in KEYS}


def _refused(pipeline: Any, named: Mapping[str, tuple[str, Any]]) -> list[str]:
    given = pipeline.parameters if isinstance(pipeline, Modular) else None
    known = given or list(signature(unwrap(type(pipeline).__call__)).parameters)
    return [
        f"{place}: {name_of(pipeline)} takes no '{key}'{_close(key, known)}"
        for place, (key, _) in named.items()
        if key not in known
    ]


def _off_the_grid(pipeline: Any, sides: Mapping[str, Any], place: str) -> list[str]:
    """Sides and lengths that the pipeline would round without a word."""
    # Wan's `image_processor` prepares images for its image encoder, so the video's comes first.
    processor = getattr(pipeline, "video_processor", None) or getattr(pipeline, "image_processor", None)
    factor = 1 if processor is None else processor.config["vae_scale_factor"]
    temporal = [getattr(pipeline, f"vae_{name}", None) for name in FRAMES_PER_LATENT]
    each = next((count for count in temporal if count), 1)
    problems = []
    for key, step, first in (("height", factor, 0), ("width", factor, 0), ("num_frames", each, 1)):
        value = sides.get(key)
        if value is None or (value - first) % step == 0:
            continue
        lower = (value - first) // step * step + first
        rule = f"multiples of {step}" + (f", and {first} more" if first else "")
        problems.append(
            f"{place}{key}={value}: {name_of(pipeline)} needs {rule}; give {lower or step} or {lower + step}"
        )
    return problems


def _require_start_from_noise(pipeline: Any, given: Mapping[str, Any]) -> None:
    """Refuse a call that starts part way, from an image or a video."""
    strength = signature(unwrap(type(pipeline).__call__)).parameters.get("strength")
    value = given.get("strength", None if strength is None else strength.default)
    if isinstance(value, int | float) and value < 1:
        raise UserError(
            f"model.call.strength={value}: {name_of(pipeline)} starts part way, from its image or video, and "
            "a rollout starts from noise; give model.call.strength=1.0 where its network is shown the image "
            "too, else save the pipeline as the class that makes samples from text alone"
        )


def _require_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise UserError(
            f"model.device='{name}': {_first_line(error)}; give a device of this machine"
        ) from None


def _close(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else "; leave it out"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
