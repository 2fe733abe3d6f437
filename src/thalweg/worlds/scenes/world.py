"""The scenes world, as others see it."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Prompt
from thalweg.worlds.scenes.checker import Verdict, attributes, check
from thalweg.worlds.scenes.prompts import held_out_prompts, training_prompts
from thalweg.worlds.scenes.vocabulary import tokenize
from thalweg.worlds.world import World


def judge(image: Float[Tensor, "C H W"], prompt: Prompt) -> Verdict:
    """How the image answers the specification in the prompt's metadata."""
    return check(image, prompt.metadata["specification"])


def labels(image: Float[Tensor, "C H W"]) -> tuple[str, ...]:
    """The colour of every object: often left open by a prompt, and what a cheating policy gives up first."""
    return tuple(str(found.color) for found in attributes(image))


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
    scorer=Path(__file__).parent / "scorer.safetensors",
)
