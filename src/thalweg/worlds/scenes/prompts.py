"""What is asked for: six tasks as in GenEval (Ghosh et al. 2023, arXiv:2310.11513) and their splits.

A composition is what a prompt means. Wordings that mean the same ("a red square and a blue circle" turned
round, "A left of B" and "B right of A") are one composition, and a composition belongs to one split only. A
specification is the composition as plain JSON:

    {"task": ..., "objects": [{"shape", "color", "size", "count"}, ...], "relation": ..., "background": ...}

where None leaves a choice free and `relation` says how the first object lies to the second.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations, permutations, product
from typing import Any

from thalweg.core.values import Prompt
from thalweg.worlds.scenes.vocabulary import COLORS, COUNTS, MIRRORED, SHAPES, SIZES, TINTS

Specification = Mapping[str, Any]

NUM_HELD_OUT = {"single": 20, "two": 120, "counting": 120, "colors": 110, "position": 180, "attribute": 54}
NUM_TRAINING = 120  # of each task at most, so that no task outweighs the others
TASKS = tuple(NUM_HELD_OUT)


def thing(shape: str, color: str | None = None, size: str | None = None, count: int = 1) -> dict[str, Any]:
    return {"shape": shape, "color": color, "size": size, "count": count}


def specification(
    task: str, *objects: dict[str, Any], relation: str | None = None, background: str | None = None
) -> Specification:
    return {"task": task, "objects": list(objects), "relation": relation, "background": background}


def compositions(task: str) -> Iterator[Specification]:
    """Every composition of a task, in one of its wordings."""
    backgrounds: tuple[str | None, ...] = (None, *TINTS)
    colors: tuple[str | None, ...] = (None, *COLORS)
    # One of two objects may be coloured; both are in attribute.
    halves = [(None, None), *((c, None) for c in COLORS), *((None, c) for c in COLORS)]
    match task:
        case "single":
            for shape, size, background in product(SHAPES, (None, *SIZES), backgrounds):
                yield specification(task, thing(shape, size=size), background=background)
        case "two":
            for (a, b), (color_a, color_b), background in product(
                combinations(SHAPES, 2), halves, backgrounds
            ):
                yield specification(task, thing(a, color_a), thing(b, color_b), background=background)
        case "counting":
            for shape, color, count, background in product(SHAPES, colors, COUNTS.values(), backgrounds):
                yield specification(task, thing(shape, color, count=count), background=background)
        case "colors":
            for shape, color, size, background in product(SHAPES, COLORS, (None, *SIZES), backgrounds):
                yield specification(task, thing(shape, color, size), background=background)
        case "position":
            for (a, b), (color_a, color_b), relation, background in product(
                permutations(SHAPES, 2), halves, ("left", "above"), backgrounds
            ):
                yield specification(
                    task, thing(a, color_a), thing(b, color_b), relation=relation, background=background
                )
        case "attribute":
            for (a, b), (color_a, color_b) in product(combinations(SHAPES, 2), permutations(COLORS, 2)):
                yield specification(task, thing(a, color_a), thing(b, color_b))
        case _:
            raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")


def turned(spec: Specification) -> Specification:
    """The same composition told from its other object."""
    relation = spec["relation"] and MIRRORED[spec["relation"]]
    return {**spec, "objects": spec["objects"][::-1], "relation": relation}


def canonical(spec: Specification) -> str:
    """One string for all wordings of a composition."""
    return min(json.dumps(s, sort_keys=True) for s in (spec, turned(spec)))


def address(spec: Specification) -> int:
    """A number that orders compositions at random, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(canonical(spec).encode(), digest_size=8).digest(), "big")


def describe(spec: Specification) -> str:
    """The English text of a specification."""
    numbers = {count: word for word, count in COUNTS.items()}
    phrases = []
    for item in spec["objects"]:
        noun = item["shape"] if item["count"] == 1 else SHAPES[item["shape"]]
        number = "a" if item["count"] == 1 else numbers[item["count"]]
        phrases.append(" ".join(word for word in (number, item["size"], item["color"], noun) if word))
    joint = {None: "and", "left": "left of", "right": "right of"}.get(spec["relation"], spec["relation"])
    return f" {joint} ".join(phrases) + (f" on {spec['background']}" if spec["background"] else "")


def prompt(spec: Specification) -> Prompt:
    return Prompt(describe(spec), {"task": spec["task"], "specification": spec})


def one_wording(spec: Specification) -> Prompt:
    return prompt(turned(spec) if address(spec) % 2 else spec)


def by_address(task: str) -> list[Specification]:
    return sorted(compositions(task), key=address)


@cache
def held_out_prompts() -> tuple[Prompt, ...]:
    """Compositions that neither pretraining nor reinforcement learning sees; one wording each."""
    return tuple(one_wording(spec) for task in TASKS for spec in by_address(task)[: NUM_HELD_OUT[task]])


@cache
def training_prompts() -> tuple[Prompt, ...]:
    """Prompts for reinforcement learning, about equally many of each task; one wording each."""
    return tuple(
        one_wording(spec)
        for task in TASKS
        for spec in by_address(task)[NUM_HELD_OUT[task] : NUM_HELD_OUT[task] + NUM_TRAINING]
    )


@cache
def pretraining_prompts() -> tuple[Prompt, ...]:
    """Every composition that is not held out, in all its wordings."""
    return tuple(
        prompt(wording)
        for task in TASKS
        for spec in by_address(task)[NUM_HELD_OUT[task] :]
        for wording in ((spec, turned(spec)) if len(spec["objects"]) > 1 else (spec,))
    )
