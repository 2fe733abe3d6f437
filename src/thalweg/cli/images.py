"""Image files from tensors."""

from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.values import Made, Media


def save_images(made: Made, folder: Path, scale: int) -> list[Path]:
    """Write 0000.png, 0001.png, ..., or 0000.gif, ... for videos, and return their paths."""
    frames = made.frames if isinstance(made, Media) else made[:, None]
    if frames is None:
        raise UserError("sample: the model makes sound, and only images and videos can be written")
    ending = "gif" if isinstance(made, Media) else "png"
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, film in enumerate(frames):
            first, *others = _pictures(film, scale)
            paths.append(folder / f"{number:04d}.{ending}")
            more = {"save_all": True, "append_images": others, "duration": 60, "loop": 0} if others else {}
            first.save(paths[-1], **more)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with --out"
        ) from error
    return paths


def _pictures(frames: Float[Tensor, "F 3 H W"], scale: int) -> list[Image.Image]:
    pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    size = (pixels.shape[2] * scale, pixels.shape[1] * scale)
    return [Image.fromarray(picture).resize(size, Image.Resampling.NEAREST) for picture in pixels]
