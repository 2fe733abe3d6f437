"""Read a string back exactly and judge it against the one asked for.

The border is ground, the pixels farthest from it are ink, and coverage is the projection of a pixel on the
way from one to the other. Letters stand side by side, so the best reading over all places is a minimum over
starts of sums of the best letter in each cell (least squares). A cell that fits no letter reads as "?", and
so does ink elsewhere. The partial credit is the OCR reward of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470):
1 - distance / length with Levenshtein's distance, at least 0. Shapes: Y X tops and lefts of a letter's cell.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from thalweg.worlds.glyphs.drawing import ADVANCE, HEIGHT, WIDTH
from thalweg.worlds.glyphs.font import ALPHABET, GLYPH_HEIGHT, GLYPH_WIDTH, INKS, LENGTHS, glyph

LETTERS = np.array([glyph(letter).ravel() for letter in ALPHABET])
NORMS = (LETTERS**2).sum(1)
CONTRAST = 0.35  # RGB distance that ink has to the ground at least
LIGHT = 0.75  # the least a channel of the ground may have
INK_RADIUS = 0.30  # RGB distance to the named ink
MISFIT = 1.5  # squared coverage error a letter may have, itself and its share of the ground around it
SPILL = 1.5  # squared coverage the ground may have outside the letters


@dataclass(frozen=True)
class Reading:
    """What an image says; "?" stands for ink that is no letter. `ink` is None where no named one is near."""

    text: str
    ink: str | None


@dataclass(frozen=True)
class Verdict:
    """`strict`: exactly the string asked for. `score`: 1 - edit distance / length, at least 0."""

    strict: bool
    score: float
    reading: Reading


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions from one string to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def coverage(image: Float[ndarray, "3 8 20"]) -> tuple[Float[ndarray, "8 20"], str | None] | None:
    """How much ink each pixel holds, and the ink's name; None where there is no ink or no light ground."""
    ring = np.concatenate([image[:, 0], image[:, -1], image[:, 1:-1, 0], image[:, 1:-1, -1]], axis=1)
    ground = np.median(ring, axis=1)
    contrast = image - ground[:, None, None]
    distance = np.sqrt((contrast**2).sum(0))
    if distance.max() < CONTRAST or ground.min() < LIGHT:
        return None
    ray = contrast[:, distance >= 0.7 * distance.max()].mean(1)
    offsets = {name: float(np.linalg.norm(ground + ray - ink)) for name, ink in INKS.items()}
    name = min(offsets, key=offsets.__getitem__)
    # Ink of another colour has a part the ray does not explain: half of it counts, so that it does not fit.
    along = np.tensordot(ray, contrast, 1) / (ray @ ray)
    across = contrast - along * ray[:, None, None]
    return along + np.sqrt((across**2).sum(0) / (ray @ ray)) * 0.5, name if offsets[
        name
    ] <= INK_RADIUS else None


def string_at(best: Float[ndarray, "Y X"], number: int) -> tuple[float, int, int, int]:
    """The error, top, left and number of the best string of a number of letters."""
    span = best.shape[1] - (number - 1) * ADVANCE
    totals = np.sum([best[:, place * ADVANCE : place * ADVANCE + span] for place in range(number)], axis=0)
    top, left = np.unravel_index(np.argmin(totals), (len(best), span))
    return float(totals[top, left]), int(top), int(left), number


def read(image: Float[Tensor, "3 8 20"]) -> Reading:
    """What an image in [0, 1] says."""
    found = coverage(image.detach().cpu().double().numpy())
    if found is None:
        return Reading("", None)
    cover, ink = found
    windows = np.lib.stride_tricks.sliding_window_view(cover, (GLYPH_HEIGHT, GLYPH_WIDTH))
    cells = windows.reshape(HEIGHT - GLYPH_HEIGHT + 1, WIDTH - GLYPH_WIDTH + 1, -1)
    gains = NORMS - 2 * cells @ LETTERS.T  # squared error with the letter less that with an empty cell
    letters, best = gains.argmin(2), gains.min(2)
    top, left, number = min((string_at(best, n) for n in LENGTHS), key=lambda string: string[0])[1:]
    rest = cover.copy()
    text = ""
    for start in range(left, left + number * ADVANCE, ADVANCE):
        cell = cells[top, start]
        error = ((cell - LETTERS[letters[top, start]]) ** 2).sum()
        text += ALPHABET[letters[top, start]] if error <= MISFIT else "?"
        rest[top : top + GLYPH_HEIGHT, start : start + GLYPH_WIDTH] = 0
    return Reading(text + "?" * int((rest**2).sum() > SPILL), ink)


def check(image: Float[Tensor, "3 8 20"], text: str) -> Verdict:
    """Judge an image in [0, 1]."""
    reading = read(image)
    score = max(0.0, 1 - edit_distance(reading.text, text) / len(text))
    return Verdict(reading.text == text, score, reading)
