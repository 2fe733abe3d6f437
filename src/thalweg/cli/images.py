"""Image files from tensors."""

from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from thalweg.core.errors import UserError


def save_images(images: Float[Tensor, "B 3 H W"], folder: Path, scale: int) -> list[Path]:
    """Write 0000.png, 0001.png, ... and return their paths."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pixels):
            picture = Image.fromarray(image)
            size = (picture.width * scale, picture.height * scale)
            paths.append(folder / f"{number:04d}.png")
            picture.resize(size, Image.Resampling.NEAREST).save(paths[-1])
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with --out"
        ) from error
    return paths
