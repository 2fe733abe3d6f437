"""Write a string: ink on a tinted ground, 8x20 RGB. Place, ink and tint are drawn at random."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from thalweg.worlds.glyphs.font import GLYPH_HEIGHT, GLYPH_WIDTH, INKS, glyph

HEIGHT, WIDTH = 8, 20
ADVANCE = GLYPH_WIDTH + 1
MARGIN = 1  # pixels of ground around the string
INK_JITTER = 0.03
TINTS = (0.88, 1.0)  # range of each channel of the ground


def draw(text: str, rng: np.random.Generator) -> Float[ndarray, "3 8 20"]:
    """One random picture of a string, in [0, 1]."""
    top = rng.integers(MARGIN, HEIGHT - GLYPH_HEIGHT - MARGIN + 1)
    left = rng.integers(MARGIN, WIDTH - len(text) * ADVANCE + 1 - MARGIN + 1)
    cover = np.zeros((HEIGHT, WIDTH))
    for place, letter in enumerate(text):
        start = left + place * ADVANCE
        cover[top : top + GLYPH_HEIGHT, start : start + GLYPH_WIDTH] = glyph(letter)
    ground = rng.uniform(*TINTS, (3, 1, 1))
    ink = np.array(list(INKS.values())[rng.integers(len(INKS))]) + rng.normal(0, INK_JITTER, 3)
    return (ground + cover * (ink[:, None, None] - ground)).clip(0, 1)
