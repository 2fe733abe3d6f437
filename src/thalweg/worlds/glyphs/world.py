"""The glyphs world, as others see it."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Prompt
from thalweg.worlds.glyphs.drawing import HEIGHT, WIDTH, draw
from thalweg.worlds.glyphs.font import ALPHABET, tokenize
from thalweg.worlds.glyphs.prompts import held_out_prompts, training_prompts
from thalweg.worlds.glyphs.reader import Verdict, check, read
from thalweg.worlds.world import World


def judge(image: Float[Tensor, "C H W"], prompt: Prompt) -> Verdict:
    """How the image answers the string in the prompt's metadata."""
    return check(image, prompt.metadata["text"])


def labels(image: Float[Tensor, "C H W"]) -> tuple[str, ...]:
    """The ink and the letters."""
    reading = read(image)
    return (f"{reading.ink} ink", *reading.text)


def picture(prompt: Prompt, rng: np.random.Generator) -> Float[np.ndarray, "C H W"]:
    """One random picture of the string in the prompt's metadata."""
    return draw(prompt.metadata["text"], rng)


def spoiled(prompt: Prompt, rng: np.random.Generator) -> Float[np.ndarray, "C H W"]:
    """The same picture with one letter that was not asked for."""
    text = prompt.metadata["text"]
    choose = np.random.Generator(rng.bit_generator.jumped())  # type: ignore[attr-defined]
    at = int(choose.integers(len(text)))
    others = ALPHABET.replace(text[at], "")
    return draw(text[:at] + others[int(choose.integers(len(others)))] + text[at + 1 :], rng)


GLYPHS = World(
    name="glyphs",
    summary="two to four letters to be written: an OCR task in 8x20 pixels",
    image_shape=(3, HEIGHT, WIDTH),
    weights=Path(__file__).parent / "base.safetensors",
    training_prompts=training_prompts,
    held_out_prompts=held_out_prompts,
    tokenize=tokenize,
    judge=judge,
    attributes=labels,
    draw=picture,
    spoil=spoiled,
)
