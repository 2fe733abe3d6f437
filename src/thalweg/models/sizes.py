"""Samples of several sizes: which rows share one, and what a recipe or a prompt may ask for.

All samples of a prompt have one size. Rows of different sizes never share a network pass. Shapes: n rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.sizes import cut_out
from thalweg.core.values import SIZE, Condition, Made, Prompt, Size
from thalweg.models.contract import HasSizes, Policy

KEYS = ("height", "width", "num_frames", "audio_seconds")
"""Of a prompt's metadata, in the order of `Size`."""
MICROSECONDS = 1_000_000
OWN_SIZE: Size = (0, 0, 0, 0)
"""The model's own."""

Decoded = tuple[Made, list[Prompt], Tensor]
"""Samples of one size, their prompts, and which rows they are."""


class SampleSize(Part):
    """A size that samples may have; what is left out is the model's own."""

    height: PositiveInt | None = None
    """Pixels."""
    width: PositiveInt | None = None
    num_frames: PositiveInt | None = None
    """Frames of a video."""
    audio_seconds: PositiveFloat | None = None
    """Length of a sound."""

    @model_validator(mode="after")
    def _whole(self) -> "SampleSize":
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width come together; give both, or neither")
        if not self.asked:
            raise ValueError(f"empty; give {', '.join(KEYS[:-1])} or {KEYS[-1]}")
        return self

    @property
    def asked(self) -> dict[str, int | float]:
        """What a prompt of this size says in its metadata."""
        return self.model_dump(exclude_none=True)


def size_asked(prompt: Prompt) -> Size:
    """The size in a prompt's metadata; raises UserError where that is none."""
    where = place_of(prompt)
    asked = {key: prompt.metadata[key] for key in KEYS if prompt.metadata.get(key) is not None}
    for key, value in asked.items():
        kinds, kind = ((int, float), "number") if key == "audio_seconds" else ((int,), "whole number")
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**31:
            raise UserError(f"{where}: {key}={value!r} is no {kind} above 0; mend it, or take it out")
    if ("height" in asked) != ("width" in asked):
        given, lacking = ("height", "width") if "height" in asked else ("width", "height")
        raise UserError(f"{where}: {given}={asked[given]} without a {lacking}; give both, or neither")
    seconds = round(asked.get("audio_seconds", 0) * MICROSECONDS)
    return (asked.get("height", 0), asked.get("width", 0), asked.get("num_frames", 0), seconds)


def place_of(prompt: Prompt) -> str:
    """Where a prompt stands, for a fault in it."""
    return prompt.where or f"prompt '{prompt.text}'"


def words_of(size: Size) -> dict[str, int | float]:
    """What is asked for, by the keys of a prompt's metadata."""
    numbers: Mapping[str, Any] = dict(zip(KEYS, (*size[:3], size[3] / MICROSECONDS), strict=True))
    return {key: value for key, value in numbers.items() if value}


def sizes_of(policy: Policy, prompts: Sequence[Prompt]) -> list[Size]:
    """The size of each prompt's samples; all alike where the model makes one."""
    return policy.sizes_of(prompts) if isinstance(policy, HasSizes) else [OWN_SIZE] * len(prompts)


def sizes_in(condition: Condition, rows: Int64[Tensor, " n"]) -> list[Size]:
    """The size of each of these rows of a condition."""
    column = condition.tensors.get(SIZE)
    if column is None:
        return [OWN_SIZE] * len(rows)
    return [tuple(size) for size in column[rows.to(column.device)].tolist()]


def by_size(policy: Policy, sizes: Sequence[Size]) -> list[tuple[Policy, Int64[Tensor, " _"]]]:
    """(the policy at a size, the rows of that size), smaller sizes first; at least one, maybe of no rows."""
    if not isinstance(policy, HasSizes):
        return [(policy, torch.arange(len(sizes)))]
    rows: dict[Size, list[int]] = {}
    for row, size in enumerate(sizes):
        rows.setdefault(size, []).append(row)
    if not rows:
        return [(policy, torch.arange(0))]
    return [(policy.at(size), torch.tensor(rows[size])) for size in sorted(rows)]


def decoded(policy: Policy, latents: Float[Tensor, "n ..."], prompts: Sequence[Prompt]) -> list[Decoded]:
    """What finished latents are, an entry a size."""
    made = []
    for at, rows in by_size(policy, sizes_of(policy, prompts)):
        own = cut_out(latents[rows.to(latents.device)], at.latent_shape)
        made.append((at.decode(own), [prompts[row] for row in rows.tolist()], rows))
    return made
