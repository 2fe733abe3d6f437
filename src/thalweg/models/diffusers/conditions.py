"""What a pipeline's `encode_prompt` returned for each prompt alone, as named tensors, and back again.

Prompts are encoded one at a time, so a prompt's condition never depends on its neighbours. Embeddings of
different lengths are padded for storage only: rows of one network call always have equal lengths.
Shapes: P prompts, L text tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LENGTH = "length"


@dataclass(frozen=True)
class PerRow:
    """A tensor with an axis that runs over prompts, `blocks` times."""

    name: str
    blocks: int
    axis: int
    """0 but for HiDream, whose first axis runs over the layers of a text encoder."""


@dataclass(frozen=True)
class ListOfRows:
    """A list with a tensor for each prompt."""

    name: str


@dataclass(frozen=True)
class Numbers:
    """A list with a whole number for each prompt, such as how many tokens it has."""

    name: str


@dataclass(frozen=True)
class Shared:
    """A tensor that all rows of a call share, such as positions, or a negative prompt that is given once."""

    name: str
    has_axis: bool
    """Whether its first axis is a batch of one."""


@dataclass(frozen=True)
class NumberOfRows:
    """How many prompts there are."""


@dataclass(frozen=True)
class Fixed:
    """No tensor: the same for any prompts."""

    value: Any


@dataclass(frozen=True)
class Nested:
    """A tuple, list or dict of slots."""

    kind: type
    slots: dict[Any, "Slot"]


Slot = PerRow | ListOfRows | Numbers | NumberOfRows | Shared | Fixed | Nested


def describe(one: Any, two: Any, name: str) -> Slot:
    """The slots of a result, from the results for one prompt and for the same prompt twice."""
    if isinstance(one, Tensor):
        grown = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
        if not grown:
            return Shared(name, has_axis=one.ndim > 1 and one.shape[0] == 1)
        return PerRow(name, one.shape[grown[0]], grown[0])
    if isinstance(one, list) and len(one) == 1 and len(two) == 2 and isinstance(one[0], Tensor):
        return ListOfRows(name)
    if isinstance(one, list) and len(one) == 1 and len(two) == 2 and isinstance(one[0], int):
        return Numbers(name)
    if isinstance(one, int) and (one, two) == (1, 2):
        return NumberOfRows()
    if isinstance(one, tuple | list):
        pairs = enumerate(zip(one, two, strict=True))
        return Nested(type(one), {i: describe(a, b, f"{name}.{i}") for i, (a, b) in pairs})
    if isinstance(one, dict):
        return Nested(dict, {key: describe(one[key], two[key], f"{name}.{key}") for key in one})
    return Fixed(one)


def doubled(one: Any) -> Any:
    """The result for the same prompt twice, where the pipeline takes one at a time: rows are joined."""
    if isinstance(one, Tensor):
        return torch.cat([one, one]) if one.ndim > 1 and len(one) == 1 else one
    return {key: doubled(value) for key, value in one.items()} if isinstance(one, dict) else one


def cut(slot: Slot, value: Any) -> dict[str, Tensor]:
    """Named tensors of one prompt's result, without a prompt axis."""
    if isinstance(slot, PerRow):
        first = value.movedim(slot.axis, 0)
        return {slot.name: first[0] if slot.blocks == 1 else first.movedim(0, -1)}
    if isinstance(slot, ListOfRows):
        return {slot.name: value[0]}
    if isinstance(slot, Numbers):
        return {slot.name: torch.tensor(value[0])}
    if isinstance(slot, Shared):
        return {slot.name: value[0] if slot.has_axis else value}
    if isinstance(slot, Nested):
        named: dict[str, Tensor] = {}
        for key, inner in slot.slots.items():
            named |= cut(inner, value[key])
        return named
    return {}


def join(slot: Slot, rows: dict[str, Tensor]) -> Any:
    """The result for several prompts, from their named tensors with a prompt axis."""
    if isinstance(slot, PerRow):
        value = rows[slot.name]
        first = value if slot.blocks == 1 else value.movedim(-1, 0).flatten(0, 1)
        return first.movedim(0, slot.axis)
    if isinstance(slot, ListOfRows):
        return list(rows[slot.name].unbind(0))
    if isinstance(slot, Numbers):
        return rows[slot.name].tolist()
    if isinstance(slot, NumberOfRows):
        return len(next(iter(rows.values())))
    if isinstance(slot, Shared):
        return rows[slot.name][:1] if slot.has_axis else rows[slot.name][0]
    if isinstance(slot, Nested):
        inner = {key: join(s, rows) for key, s in slot.slots.items()}
        return inner if slot.kind is dict else slot.kind(inner.values())
    return slot.value


def stack(prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One table of several prompts: padded at the end of the first axis, with the lengths beside."""
    table: dict[str, Tensor] = {}
    for name in prompts[0]:
        rows = [prompt[name] for prompt in prompts]
        if rows[0].ndim == 0:
            table[name] = torch.stack(rows)
            continue
        table[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        table[f"{name}.{LENGTH}"] = torch.tensor([len(row) for row in rows])
    return table


def trim(table: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table of rows of equal lengths, without padding and lengths."""
    trimmed = {}
    for name, column in table.items():
        if name.endswith(f".{LENGTH}"):
            continue
        lengths = table.get(f"{name}.{LENGTH}")
        trimmed[name] = column if lengths is None else column[:, : int(lengths[0])]
    return trimmed
