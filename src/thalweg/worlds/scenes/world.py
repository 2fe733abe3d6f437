"""The scenes world, as others see it."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Prompt
from thalweg.worlds.scenes.checker import Verdict, attributes, blame, check
from thalweg.worlds.scenes.drawing import draw
from thalweg.worlds.scenes.prompts import held_out_prompts, training_prompts
from thalweg.worlds.scenes.vocabulary import SHAPES, tokenize
from thalweg.worlds.world import World


def judge(image: Float[Tensor, "C H W"], prompt: Prompt) -> Verdict:
    """How the image answers the specification in the prompt's metadata."""
    return check(image, prompt.metadata["specification"])


def blamed(image: Float[Tensor, "C H W"], prompt: Prompt) -> Float[Tensor, "H W"]:
    """Where the image misses the specification in the prompt's metadata."""
    return blame(image, prompt.metadata["specification"])


def labels(image: Float[Tensor, "C H W"]) -> tuple[str, ...]:
    """The colour of every object: often left open by a prompt, and what a cheating policy gives up first."""
    return tuple(str(found.color) for found in attributes(image))


def picture(prompt: Prompt, rng: np.random.Generator) -> Float[np.ndarray, "C H W"]:
    """One random picture of the specification in the prompt's metadata."""
    return draw(prompt.metadata["specification"], rng)


def spoiled(prompt: Prompt, rng: np.random.Generator) -> Float[np.ndarray, "C H W"]:
    """The same picture with the objects of one kind in a shape that was not asked for."""
    specification = prompt.metadata["specification"]
    asked = specification["objects"]
    others = [shape for shape in SHAPES if shape not in {item["shape"] for item in asked}]
    choose = np.random.Generator(rng.bit_generator.jumped())  # type: ignore[attr-defined]
    which, shape = int(choose.integers(len(asked))), others[int(choose.integers(len(others)))]
    objects = [{**item, "shape": shape} if i == which else item for i, item in enumerate(asked)]
    return draw({**specification, "objects": objects}, rng)


SCENES = World(
    name="scenes",
    summary="coloured shapes on a tinted ground: a GenEval in 16x16 pixels",
    image_shape=(3, 16, 16),
    weights=Path(__file__).parent / "base.safetensors",
    training_prompts=training_prompts,
    held_out_prompts=held_out_prompts,
    tokenize=tokenize,
    judge=judge,
    attributes=labels,
    draw=picture,
    spoil=spoiled,
    blame=blamed,
    scorer=Path(__file__).parent / "scorer.safetensors",
)
