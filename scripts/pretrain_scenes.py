"""Pretrain the base of the scenes world. Stages and options: `python scripts/pretrain_scenes.py --help`."""

from functools import cache, partial
from pathlib import Path

import numpy as np
from flow_pretraining import Question, World, main
from torch import Tensor

from thalweg.models.miniature.network import MiniatureConfig
from thalweg.worlds.scenes.checker import check
from thalweg.worlds.scenes.drawing import CANVAS, draw
from thalweg.worlds.scenes.prompts import Specification, held_out_prompts, pretraining_prompts
from thalweg.worlds.scenes.vocabulary import VOCABULARY, tokenize

# Harder tasks are drawn more often.
TASK_WEIGHTS = {"single": 0.4, "two": 1.0, "counting": 1.1, "colors": 0.7, "position": 1.6, "attribute": 1.8}


@cache
def captions() -> dict[str, list[tuple[Specification, Tensor]]]:
    by_task: dict[str, list[tuple[Specification, Tensor]]] = {task: [] for task in TASK_WEIGHTS}
    for prompt in pretraining_prompts():
        by_task[prompt.metadata["task"]].append(
            (prompt.metadata["specification"], tokenize([prompt.text])[0])
        )
    return by_task


def draw_one(rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
    shares = np.array(list(TASK_WEIGHTS.values()))
    task = list(TASK_WEIGHTS)[rng.choice(len(shares), p=shares / shares.sum())]
    choices = captions()[task]
    specification, tokens = choices[rng.integers(len(choices))]
    return draw(specification, rng), tokens


def is_right(specification: Specification, image: Tensor) -> bool:
    return check(image, specification).strict


def questions() -> list[Question]:
    return [
        Question(tokenize([p.text])[0], p.metadata["task"], partial(is_right, p.metadata["specification"]))
        for p in held_out_prompts()
    ]


WORLD = World(
    name="scenes",
    config=MiniatureConfig(
        height=CANVAS, width=CANVAS, num_tokens=VOCABULARY.num_tokens, text_length=VOCABULARY.length
    ),
    learning_rate=1.2e-3,
    batch_size=64,
    draw=draw_one,
    questions=questions,
    weights=Path("src/thalweg/worlds/scenes/base.safetensors"),
)

if __name__ == "__main__":
    main(WORLD)
