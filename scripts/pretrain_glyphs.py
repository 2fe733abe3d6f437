"""Pretrain the base of the glyphs world. Stages and options: `python scripts/pretrain_glyphs.py --help`."""

from functools import partial
from pathlib import Path

import numpy as np
from flow_pretraining import Question, World, main
from torch import Tensor

from thalweg.models.miniature.network import MiniatureConfig
from thalweg.worlds.glyphs.drawing import HEIGHT, WIDTH, draw
from thalweg.worlds.glyphs.font import LENGTHS, VOCABULARY, tokenize
from thalweg.worlds.glyphs.prompts import NUM_HELD_OUT, held_out_prompts, strings
from thalweg.worlds.glyphs.reader import check

LENGTH_SHARES = {2: 0.2, 3: 0.3, 4: 0.5}


def draw_one(rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
    length = LENGTHS[rng.choice(len(LENGTHS), p=[LENGTH_SHARES[n] for n in LENGTHS])]
    choices = strings(length)[NUM_HELD_OUT[length] :]
    text = choices[rng.integers(len(choices))]
    return draw(text, rng), tokenize([text])[0]


def is_right(text: str, image: Tensor) -> bool:
    return check(image, text).strict


def questions() -> list[Question]:
    return [
        Question(tokenize([p.text])[0], p.metadata["task"], partial(is_right, p.text))
        for p in held_out_prompts()
    ]


WORLD = World(
    name="glyphs",
    config=MiniatureConfig(
        height=HEIGHT,
        width=WIDTH,
        num_tokens=VOCABULARY.num_tokens,
        text_length=VOCABULARY.length,
        model_width=96,
        text_depth=1,
        depth=4,
    ),
    learning_rate=1.2e-3,
    batch_size=64,
    draw=draw_one,
    questions=questions,
    weights=Path("src/thalweg/worlds/glyphs/base.safetensors"),
)

if __name__ == "__main__":
    main(WORLD)
