"""The words of a scene: shapes, colours, tints, sizes, counts and relations, and the text made of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from thalweg.worlds.vocabulary import Vocabulary

SHAPES = {"square": "squares", "circle": "circles", "triangle": "triangles", "cross": "crosses"}
COLORS = {
    "red": (0.86, 0.13, 0.13),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.13, 0.30, 0.90),
    "yellow": (0.96, 0.80, 0.10),
    "purple": (0.60, 0.16, 0.72),
    "black": (0.10, 0.10, 0.12),
}
TINTS = {
    "white": (0.98, 0.98, 0.98),
    "pink": (0.99, 0.86, 0.89),
    "mint": (0.85, 0.97, 0.88),
    "sky": (0.85, 0.92, 0.99),
    "cream": (0.99, 0.95, 0.80),
}
SIZES = {"small": (5,), "large": (8,)}
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left", "right", "above", "below")
MIRRORED = {"left": "right", "right": "left", "above": "below", "below": "above"}

VOCABULARY = Vocabulary(
    words=("a", "and", "on", "of", *RELATIONS, *COUNTS, *SIZES, *TINTS, *COLORS, *SHAPES, *SHAPES.values()),
    length=9,
)


def tokenize(texts: Sequence[str]) -> Int[Tensor, "B L"]:
    """Tokens of each prompt, word by word; case and punctuation do not matter."""
    return torch.stack(
        [VOCABULARY.encode(text.lower().replace(",", " ").replace(".", " ").split()) for text in texts]
    )
