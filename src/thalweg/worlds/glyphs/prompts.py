"""What is asked for: strings of two to four letters, and their splits. A task is a length."""

import hashlib
from functools import cache
from itertools import product

from thalweg.core.values import Prompt
from thalweg.worlds.glyphs.font import ALPHABET, LENGTHS

TASKS = {2: "two", 3: "three", 4: "four"}
NUM_HELD_OUT = {2: 40, 3: 200, 4: 400}
NUM_TRAINING = 100  # of each length at most


def address(text: str) -> int:
    """A number that orders strings at random, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@cache
def strings(length: int) -> tuple[str, ...]:
    """Every string of a length, in random order."""
    return tuple(sorted(("".join(letters) for letters in product(ALPHABET, repeat=length)), key=address))


def prompt(text: str) -> Prompt:
    return Prompt(text, {"task": TASKS[len(text)], "text": text})


@cache
def held_out_prompts() -> tuple[Prompt, ...]:
    """Strings that neither pretraining nor reinforcement learning sees."""
    return tuple(prompt(text) for n in LENGTHS for text in strings(n)[: NUM_HELD_OUT[n]])


@cache
def training_prompts() -> tuple[Prompt, ...]:
    """Prompts for reinforcement learning, equally many of each length."""
    return tuple(
        prompt(text) for n in LENGTHS for text in strings(n)[NUM_HELD_OUT[n] : NUM_HELD_OUT[n] + NUM_TRAINING]
    )


@cache
def pretraining_prompts() -> tuple[Prompt, ...]:
    """Every string that is not held out."""
    return tuple(prompt(text) for n in LENGTHS for text in strings(n)[NUM_HELD_OUT[n] :])
