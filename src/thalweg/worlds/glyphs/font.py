"""Twelve letters of 3x5 pixels; any two differ in at least four of them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from thalweg.worlds.vocabulary import Vocabulary

GLYPH_HEIGHT, GLYPH_WIDTH = 5, 3
FONT = {
    "A": (".#.", "#.#", "###", "#.#", "#.#"),
    "C": (".##", "#..", "#..", "#..", ".##"),
    "E": ("###", "#..", "###", "#..", "###"),
    "K": ("#.#", "##.", "#..", "##.", "#.#"),
    "L": ("#..", "#..", "#..", "#..", "###"),
    "O": (".#.", "#.#", "#.#", "#.#", ".#."),
    "P": ("##.", "#.#", "##.", "#..", "#.."),
    "S": (".##", "#..", ".#.", "..#", "##."),
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "U": ("#.#", "#.#", "#.#", "#.#", "###"),
    "X": ("#.#", "#.#", ".#.", "#.#", "#.#"),
    "Z": ("###", "..#", ".#.", "#..", "###"),
}
ALPHABET = "".join(FONT)
LENGTHS = (2, 3, 4)
INKS = {
    "black": (0.10, 0.10, 0.12),
    "red": (0.80, 0.12, 0.12),
    "green": (0.08, 0.50, 0.18),
    "blue": (0.13, 0.25, 0.85),
}
VOCABULARY = Vocabulary(words=tuple(ALPHABET), length=max(LENGTHS))


def glyph(letter: str) -> Float[ndarray, "5 3"]:
    """1 where there is ink."""
    return np.array([[float(c == "#") for c in row] for row in FONT[letter]])


def tokenize(texts: Sequence[str]) -> Int[Tensor, "B L"]:
    """Tokens of each prompt, letter by letter; case, blanks and quotation marks do not matter."""
    return torch.stack([VOCABULARY.encode([c for c in text.upper() if c not in " '\""]) for text in texts])
