"""Read a scene back exactly and judge it against a specification.

The border is background. What differs from it falls into 8-connected components; each is explained by the
sprite, over all shapes at about its size and place, that fits its coverage best in the least-squares sense. A
component that no sprite or colour explains has none: it can only be wrong. The partial credit follows the
GenEval reward of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470): a mean of terms for number, colour, size,
position and background. It is 1 exactly where the verdict is strict.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from thalweg.worlds.scenes.drawing import CANVAS, SIZE_RANGE, sprite
from thalweg.worlds.scenes.prompts import Specification
from thalweg.worlds.scenes.vocabulary import COLORS, SHAPES, TINTS

FOREGROUND = 0.25  # RGB distance from the background at which a pixel belongs to an object
ROUGHNESS = 0.06  # root mean square deviation a background may have
MISFIT = 0.09  # squared coverage error for each pixel of the box's outline; a 3x3 blur gives 0.15 to 0.25
COLOR_RADIUS = 0.22  # RGB distance to the named colour
TINT_RADIUS = 0.08
SPECK = 2  # foreground pixels so few that they are dirt, not an object

PALETTE = np.array(list(COLORS.values()))
PAPERS = np.array(list(TINTS.values()))


@dataclass(frozen=True)
class Found:
    """An object in an image. `box` is (top, left, size); shape and colour are None where unrecognisable."""

    shape: str | None
    color: str | None
    box: tuple[int, int, int]


@dataclass(frozen=True)
class Verdict:
    """`strict`: exactly what was asked and nothing else. `score`: partial credit in [0, 1]."""

    strict: bool
    score: float
    objects: tuple[Found, ...]


@cache
def placements(
    height: int, width: int
) -> tuple[list[tuple[str, tuple[int, int, int]]], Float[ndarray, "S N"], Float[ndarray, " S"]]:
    """Sprites about as large as a box, at every place in the box grown by a pixel.

    Name and (top, left, size) in that window, coverage, squared norm of the coverage.
    """
    names, covers = [], []
    for size in SIZE_RANGE:
        if abs(size - height) > 1 or abs(size - width) > 1:
            continue
        for shape, top, left in product(SHAPES, range(height + 3 - size), range(width + 3 - size)):
            cover = np.zeros((height + 2, width + 2))
            cover[top : top + size, left : left + size] = sprite(shape, size)
            names.append((shape, (top, left, size)))
            covers.append(cover.ravel())
    stack = np.array(covers).reshape(len(covers), (height + 2) * (width + 2))
    return names, stack, (stack**2).sum(1)


STRIDE = CANVAS + 2  # a row in a bit board, with a column of zeros on either side


def board(mask: Bool[ndarray, "16 16"]) -> int:
    padded = np.full((STRIDE, STRIDE), ord("0"), dtype=np.uint8)
    padded[1:-1, 1:-1] += mask
    return int(padded.tobytes(), 2)


def mask_of(bits: int) -> Bool[ndarray, "16 16"]:
    text = format(bits, f"0{STRIDE * STRIDE}b").encode()
    return (np.frombuffer(text, dtype=np.uint8) == ord("1")).reshape(STRIDE, STRIDE)[1:-1, 1:-1]


def grown(bits: int) -> int:
    """The set and its 8 neighbours."""
    rows = bits | bits << 1 | bits >> 1
    return rows | rows << STRIDE | rows >> STRIDE


def components(foreground: int) -> Iterator[int]:
    """8-connected components as bit boards."""
    while foreground:
        part, reached = 0, foreground & -foreground
        while reached != part:
            part, reached = reached, grown(reached) & foreground
        yield part
        foreground &= ~part


def border(image: Float[ndarray, "3 16 16"]) -> Float[ndarray, " 3"]:
    ring = np.concatenate([image[:, 0], image[:, -1], image[:, 1:-1, 0], image[:, 1:-1, -1]], axis=1)
    return np.median(ring, axis=1)


def color_of(pigment: Float[ndarray, " 3"]) -> str | None:
    offsets = np.linalg.norm(PALETTE - pigment, axis=1)
    return list(COLORS)[int(offsets.argmin())] if offsets.min() <= COLOR_RADIUS else None


def explain(
    contrast: Float[ndarray, "3 16 16"],  # image less background
    distance: Float[ndarray, "16 16"],
    background: Float[ndarray, " 3"],
    part: int,
    foreground: int,
) -> Found:
    """The sprite and the colour that explain one component best."""
    here = mask_of(part)
    rows, columns = here.any(1).nonzero()[0], here.any(0).nonzero()[0]
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    strong = here & (distance >= 0.85 * distance[here].max())
    ray = contrast[:, strong].mean(1)
    color = color_of(ray + background)

    names, covers, norms = placements(height, width)
    if not names:
        return Found(None, color, (top, left, max(height, width)))
    # Soft edges belong to the object, so a blurred one does not fit; a neighbour's pixels do not.
    around = mask_of(grown(part) & ~(foreground & ~part))
    if color is not None:
        ray = np.array(COLORS[color]) - background
    padded = np.zeros((STRIDE, STRIDE))
    padded[1:-1, 1:-1] = (ray @ contrast.reshape(3, -1)).reshape(CANVAS, CANVAS) / (ray @ ray) * around
    cover = padded[top : top + height + 2, left : left + width + 2].ravel()
    errors = norms - 2 * covers @ cover
    best = int(errors.argmin())
    shape, (down, right, size) = names[best]
    fits = (errors[best] + cover @ cover) / (4 * size) <= MISFIT
    return Found(shape if fits else None, color, (top + down - 1, left + right - 1, size))


def tint_of(background: Float[ndarray, " 3"]) -> str | None:
    offsets = np.linalg.norm(PAPERS - background, axis=1)
    return list(TINTS)[int(offsets.argmin())] if offsets.min() <= TINT_RADIUS else None


def read(image: Float[ndarray, "3 16 16"]) -> tuple[Float[ndarray, " 3"], bool, tuple[Found, ...]]:
    """The background, whether it is clean, and the objects from top to bottom."""
    background = border(image)
    contrast = image - background[:, None, None]
    distance = np.sqrt((contrast**2).sum(0))
    foreground = board(distance > FOREGROUND)
    empty = ~mask_of(grown(foreground))
    clean = bool(empty.any() and np.sqrt((distance[empty] ** 2).mean() / 3) <= ROUGHNESS)
    parts = [part for part in components(foreground) if part.bit_count() > SPECK]
    if not clean or len(parts) > 9:
        return background, False, ()
    objects = [explain(contrast, distance, background, part, foreground) for part in parts]
    return background, clean, tuple(sorted(objects, key=lambda found: found.box))


def pixels(image: Float[Tensor, "3 16 16"]) -> Float[ndarray, "3 16 16"]:
    return image.detach().cpu().double().numpy()


def attributes(image: Float[Tensor, "3 16 16"]) -> tuple[Found, ...]:
    """The objects in an image in [0, 1], from top to bottom; none where the background is not clean."""
    return read(pixels(image))[2]


def lies(first: Found, second: Found) -> str | None:
    """How the first lies to the second, by the larger offset of their centres; None for a tie."""
    (top_a, left_a, size_a), (top_b, left_b, size_b) = first.box, second.box
    down, right = top_b - top_a + (size_b - size_a) / 2, left_b - left_a + (size_b - size_a) / 2
    if abs(down) == abs(right):
        return None
    if abs(right) > abs(down):
        return "left" if right > 0 else "right"
    return "above" if down > 0 else "below"


def has_size(found: Found, size: str) -> bool:
    return found.box[2] <= 6 if size == "small" else found.box[2] >= 7


def check(image: Float[Tensor, "3 16 16"], specification: Specification) -> Verdict:
    """Judge an image in [0, 1]."""
    background, clean, objects = read(pixels(image))
    if not clean or not objects:
        return Verdict(False, 0.0, objects)
    asked = specification["objects"]
    number = sum(item["count"] for item in asked)
    terms = [max(0.0, 1 - abs(len(objects) - number) / number)]
    chosen = []
    for item in asked:
        count = item["count"]
        same = [found for found in objects if found.shape == item["shape"]]
        terms.append(max(0.0, 1 - abs(len(same) - count) / count))
        if item["color"]:
            right = [found for found in same if found.color == item["color"]]
            terms.append(min(len(right), count) / count)
            same = right or same
        else:
            # Any colour, but a colour.
            terms.append(min(sum(found.color is not None for found in same), count) / count)
        if item["size"]:
            terms.append(float(any(has_size(found, item["size"]) for found in same)))
        chosen.append(same)
    if specification["relation"]:
        first, second = chosen
        terms.append(float(any(lies(a, b) == specification["relation"] for a in first for b in second)))
    terms.append(
        float(
            tint_of(background) in ([specification["background"]] if specification["background"] else TINTS)
        )
    )
    score = sum(terms) / len(terms)
    return Verdict(all(term == 1 for term in terms), score, objects)


def blame(image: Float[Tensor, "3 16 16"], specification: Specification) -> Float[Tensor, "16 16"]:
    """1 at objects that answer nothing asked for, with a pixel around them; at the whole image where a
    failure has no place of its own, as a missing object or a wrong background has none.
    """
    verdict = check(image, specification)
    marked = torch.zeros(CANVAS, CANVAS)
    if verdict.strict:
        return marked
    wrong = [found for found in verdict.objects if not _is_asked(found, specification)]
    for top, left, size in (found.box for found in wrong):
        marked[max(top - 1, 0) : top + size + 1, max(left - 1, 0) : left + size + 1] = 1
    return marked if wrong else torch.ones(CANVAS, CANVAS)


def _is_asked(found: Found, specification: Specification) -> bool:
    return any(
        found.shape == item["shape"]
        and (found.color == item["color"] if item["color"] else found.color is not None)
        and (not item["size"] or has_size(found, item["size"]))
        for item in specification["objects"]
    )
