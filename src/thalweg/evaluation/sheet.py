"""Sample sheets of a run: one row a prompt, its group side by side, with an index that says what is where."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from thalweg.core.files import write_whole
from thalweg.core.values import Prompt

BASE = "base.safetensors"


def save_sheet(
    folder: Path, iteration: int, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt], per_prompt: int
) -> None:
    """Add the sheet of an iteration; the first one also stays as the base that monitors compare with."""
    height, width = images.shape[2:]
    rows = images.unflatten(0, (len(prompts), per_prompt)).permute(0, 3, 1, 4, 2)
    pixels = (rows.reshape(len(prompts) * height, per_prompt * width, 3) * 255).round().byte().cpu().numpy()
    name = f"{iteration:08d}.png"
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    write_whole(folder / name, picture.getvalue())
    index = folder / "index.json"
    known: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {"files": {}}
    known |= {"prompts": [p.text for p in prompts], "per_prompt": per_prompt, "tile": [width, height]}
    known["files"][str(iteration)] = name
    write_whole(index, json.dumps(known, indent=1))
    if not (folder / BASE).exists():
        write_whole(folder / BASE, save({"images": (images * 255).round().byte().contiguous()}))


def load_base(folder: Path) -> Float[Tensor, "B 3 H W"] | None:
    """The images of iteration 0, if they were saved."""
    file = folder / BASE
    return load_file(file)["images"].to(torch.float32) / 255 if file.exists() else None
