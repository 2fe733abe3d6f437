"""Arguments of a call that are images, or lists of them: frames, masks, references."""

from typing import Any

from PIL import Image, ImageOps

from thalweg.core.errors import UserError

WORDS = ("image", "video", "mask")
"""One of them is in the name of an argument that takes pictures."""


def read_image(value: Any) -> Any:
    """The image of a file, or the image itself."""
    if not isinstance(value, str):
        return value
    try:
        with Image.open(value) as file:
            return file.convert("RGB")
    except OSError as error:
        raise UserError(f"image '{value}': cannot be read ({error}); give an image file") from None


def read_pictures(argument: str, value: Any) -> Any:
    """The value of an argument, with the images of the files that it names."""
    if not any(word in argument for word in WORDS):
        return value
    return [read_image(one) for one in value] if isinstance(value, list | tuple) else read_image(value)


def is_picture(value: Any) -> bool:
    """An image, or a list of images."""
    if isinstance(value, list):
        return bool(value) and all(map(is_picture, value))
    return isinstance(value, Image.Image)


def negative(value: Any) -> Any:
    """The image with every colour turned into its opposite, or each of several."""
    return [negative(one) for one in value] if isinstance(value, list) else ImageOps.invert(value)
