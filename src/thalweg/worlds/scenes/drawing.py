"""Draw a scene: crisp sprites of 5 to 8 pixels on a near-white background, 16x16 RGB.

Objects keep one pixel of background to the border and to each other. What the specification leaves free
(colour, size, place, tint) is drawn at random.
"""

from functools import cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from thalweg.worlds.scenes.prompts import Specification
from thalweg.worlds.scenes.vocabulary import COLORS, SIZES, TINTS

CANVAS = 16
SIZE_RANGE = range(5, 9)
COLOR_JITTER = 0.03  # standard deviation of an object's colour around its name's
TINT_JITTER = 0.008


@cache
def sprite(shape: str, size: int) -> Float[ndarray, "size size"]:
    """Coverage in [0, 1]. Every row and column of the box is touched, so the box can be read back."""
    index = np.arange(size)
    center = (size - 1) / 2
    match shape:
        case "square":
            cover = np.ones((size, size))
        case "circle":
            fine = (np.arange(size * 8) + 0.5) / 8 - size / 2
            inside = (fine[:, None] ** 2 + fine[None] ** 2) <= (size / 2) ** 2
            cover = inside.reshape(size, 8, size, 8).mean((1, 3))
        case "triangle":
            half = (size - 2 * ((size - 1 - index) // 2)) / 2
            cover = np.abs(index - center)[None] < half[:, None]
        case "cross":
            arm = np.abs(index - center) < (1 if size % 2 == 0 else 0.5)
            cover = arm[:, None] | arm[None]
        case _:
            raise ValueError(f"no shape is called {shape!r}")
    return cover.astype(np.float64)


def boxes(
    sizes: list[int], relation: str | None, rng: np.random.Generator
) -> list[tuple[int, int, int]] | None:
    """Random (top, left, size) with a pixel between any two, or None where the throw does not fit."""
    placed: list[tuple[int, int, int]] = []
    for size in sizes:
        for _ in range(8):
            top, left = rng.integers(1, CANVAS - size, 2).tolist()
            if all(
                top > t + s or t > top + size or left > u + s or u > left + size  # a gap of one along an axis
                for t, u, s in placed
            ):
                placed.append((top, left, size))
                break
        else:
            return None
    if relation is not None:
        (t, u, s), (top, left, size) = placed
        down, right = top + size / 2 - t - s / 2, left + size / 2 - u - s / 2
        along, across = {
            "left": (right, down),
            "right": (-right, down),
            "above": (down, right),
            "below": (-down, right),
        }[relation]
        if along < abs(across) + 2:
            return None
    return placed


def sizes_of(spec: Specification, rng: np.random.Generator) -> list[int]:
    number = sum(item["count"] for item in spec["objects"])
    largest = {1: 8, 2: 7}.get(number, 6)
    return [
        int(rng.choice(SIZES[item["size"]])) if item["size"] else int(rng.integers(5, largest + 1))
        for item in spec["objects"]
        for _ in range(item["count"])
    ]


def draw(spec: Specification, rng: np.random.Generator) -> Float[ndarray, "3 16 16"]:
    """One random picture of what the specification asks for, in [0, 1]."""
    placed = None
    while placed is None:
        placed = boxes(sizes_of(spec, rng), spec["relation"], rng)
    names, tints = list(COLORS), list(TINTS)
    background = TINTS[spec["background"] or tints[rng.integers(len(tints))]]
    tint = np.array(background) + rng.normal(0, TINT_JITTER, 3)
    image = np.broadcast_to(tint[:, None, None], (3, CANVAS, CANVAS)).copy()
    free = [item for item in spec["objects"] for _ in range(item["count"])]
    for item, (top, left, size) in zip(free, placed, strict=True):
        color = COLORS[item["color"] or names[rng.integers(len(names))]]
        pigment = np.array(color) + rng.normal(0, COLOR_JITTER, 3)
        window = image[:, top : top + size, left : left + size]
        window += sprite(item["shape"], size) * (pigment[:, None, None] - tint[:, None, None])
    return image.clip(0, 1)
