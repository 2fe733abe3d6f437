"""What flows through a run: prompts, conditions, and the rows that objectives read.

Axes: B rows, S states, M noise levels, K trained transitions, R rewards, F frames, A audio channels, T audio
samples, n chosen steps, ... latent axes.
Every column of a table has one entry a row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

Metrics = dict[str, float]


@dataclass(frozen=True)
class Prompt:
    """What a sample is asked to be: text, and whatever a reward needs to judge it (plain JSON values)."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    """FILE:LINE, where it was read from one."""


Size = tuple[int, int, int, int]
"""Height and width in pixels, frames, microseconds of sound; 0 is the model's own."""
SIZE = "size"
"""The column of a condition (P, 4) with the size that each prompt asks for, where the model makes several."""


@dataclass(frozen=True)
class Condition:
    """What encoding prompts gives: named tensors, one row a prompt. Stored once, referred to by row."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def index(self, rows: Int64[Tensor, " B"]) -> "Condition":
        return Condition({name: t[rows.to(t.device)] for name, t in self.tensors.items()})

    def repeat(self, times: int) -> "Condition":
        """Each row `times` times, copies side by side."""
        return Condition({name: t.repeat_interleave(times, 0) for name, t in self.tensors.items()})

    def lerp(self, other: "Condition", share: float) -> "Condition":
        """(1 - share) of this condition and `share` of the other, in its floating tensors."""
        return Condition(
            {
                name: t.lerp(other.tensors[name], share) if t.is_floating_point() else t
                for name, t in self.tensors.items()
            }
        )

    def perturb(self, noise: Mapping[str, Tensor], scale: float) -> "Condition":
        """Noise added to the named tensors."""
        moved = {name: self.tensors[name] + scale * noise[name] for name in noise}
        return Condition({**self.tensors, **moved})


def padded(column: Shaped[Tensor, "P ..."], length: int) -> Shaped[Tensor, "P ..."]:
    """A column of a condition with its second axis filled up with zeros: text tokens, whose numbers stand
    beside them.
    """
    if column.ndim < 2 or column.shape[1] == length:
        return column
    return torch.cat([column, column.new_zeros(len(column), length - column.shape[1], *column.shape[2:])], 1)


def joined(conditions: Sequence[Condition]) -> Condition:
    """The rows of all, one after another; embeddings of fewer tokens than the longest are filled up."""
    tensors = {}
    for name, first in conditions[0].tensors.items():
        columns = [condition.tensors[name].to(first.device) for condition in conditions]
        longest = max(column.shape[1] if column.ndim > 1 else 0 for column in columns)
        tensors[name] = torch.cat([padded(column, longest) for column in columns])
    return Condition(tensors)


@dataclass(frozen=True)
class Media:
    """Finished samples that are no single images: a video, a sound, or both."""

    frames: Float[Tensor, "B F 3 H W"] | None = None
    """Values in [0, 1]."""
    audio: Float[Tensor, "B A T"] | None = None
    """Waves, values in [-1, 1]."""

    def __len__(self) -> int:
        return len(self.frames if self.frames is not None else self.audio)  # type: ignore[arg-type]

    @property
    def stills(self) -> Float[Tensor, "B 3 H W"] | None:
        """The middle frame of each video."""
        return None if self.frames is None else self.frames[:, self.frames.shape[1] // 2]


Made = Tensor | Media
"""What decoding gives: images (B, 3, H, W) in [0, 1], or media."""


T = TypeVar("T", bound="Transitions | Samples | Paths")


def with_latents_of(table: T, shape: tuple[int, ...]) -> T:
    """The table of rows of one size, whose latents have this shape: cut out of what was filled up for storing
    beside larger ones (`core.sizes`).
    """
    columns = {name: getattr(table, name) for name in table.LATENTS}
    changed = {
        name: column.flatten(axes)[..., : math.prod(shape)].unflatten(axes, shape)
        for name, axes in table.LATENTS.items()
        if (column := columns[name]) is not None and column.ndim == axes + 1 and column.shape[axes:] != shape
    }
    return replace(table, **changed) if changed else table


def _index(table: T, rows: Tensor) -> T:
    taken = {f.name: getattr(table, f.name) for f in fields(table)}
    return replace(table, **{name: c[rows] for name, c in taken.items() if c is not None})


def columns_of(table: "Transitions | Samples | Paths") -> dict[str, Tensor]:
    """The columns that cost little to send: one number a row, and the advantages."""
    every = {f.name: getattr(table, f.name) for f in fields(table)}
    there = {name: c for name, c in every.items() if c is not None}
    return {name: c for name, c in there.items() if c.ndim == 1 or name == "advantages"}


def without_latents(table: T, columns: Mapping[str, Tensor]) -> T:
    """A table of these columns, whose latents are empty."""
    count = len(columns["sample"])
    there = {f.name: c for f in fields(table) if (c := getattr(table, f.name)) is not None}
    empty = {name: c.new_zeros(count, 0) for name, c in there.items()}
    return replace(table, **(empty | dict(columns)))


@dataclass(frozen=True)
class Transitions:
    """Trained edges of a forest: what an objective over stored paths reads."""

    LATENTS: ClassVar[Mapping[str, int]] = {"x": 1, "x_next": 1, "old_mean": 1}
    """Columns with latent axes, and how many axes stand before those."""
    x: Float[Tensor, "B ..."]
    x_next: Float[Tensor, "B ..."]
    sigma: Float[Tensor, " B"]
    sigma_next: Float[Tensor, " B"]
    k: Float[Tensor, " B"]
    """Weight of the predicted noise in the mean of the transition (`flow.gaussian`)."""
    std: Float[Tensor, " B"]
    old_log_prob: Float[Tensor, " B"]
    """log p(x_next | x) under the behaviour weights, a mean over latent elements."""
    advantages: Float[Tensor, "B R"]
    weight: Float[Tensor, " B"]
    """Weight of the row in the loss; 0 for a row that only pads."""
    condition: Int64[Tensor, " B"]
    """Row of the forest's condition."""
    prompt_slot: Int64[Tensor, " B"]
    seed_group: Int64[Tensor, " B"]
    sample: Int64[Tensor, " B"]
    """The first leaf below the edge: what keeps the edges of one trajectory together."""
    step: Int64[Tensor, " B"]
    depth: Int64[Tensor, " B"]
    """How many forks lie above the edge."""
    parent: Int64[Tensor, " B"]
    """A name for the state the step leaves, the same for siblings."""
    behaviour_log_prob: Float[Tensor, " B"]
    """log p(x_next | x) as the rollout saw it; `old_log_prob` may be computed again on the training path."""
    old_mean: Float[Tensor, "B ..."] | None = None
    """Mean of the transition under the behaviour weights, where the objective asks for it."""
    on_best_way: Bool[Tensor, " B"] | None = None
    """The edge lies on the way to the best sample of its tree, where the objective asks for it."""
    chunk: Int64[Tensor, " B"] | None = None
    """Which chunk of trained steps the edge belongs to, where the objective forms some."""
    teacher: Int64[Tensor, " B"] | None = None
    """Which of several teachers is asked about the prompt, where the objective asks some."""

    def __len__(self) -> int:
        return len(self.sigma)

    def index(self, rows: Int64[Tensor, " b"] | Bool[Tensor, " B"]) -> "Transitions":
        return _index(self, rows)


@dataclass(frozen=True)
class Samples:
    """Finished samples under a drawn noise level: what an objective over the forward process reads.

    A sample stands in as many rows as noise levels were drawn for it.
    """

    LATENTS: ClassVar[Mapping[str, int]] = {"x0": 1, "noise": 1, "regions": 2}
    x0: Float[Tensor, "B ..."]
    sigma: Float[Tensor, " B"]
    noise: Float[Tensor, "B ..."]
    advantages: Float[Tensor, "B R"]
    weight: Float[Tensor, " B"]
    condition: Int64[Tensor, " B"]
    prompt_slot: Int64[Tensor, " B"]
    seed_group: Int64[Tensor, " B"]
    sample: Int64[Tensor, " B"]
    step: Int64[Tensor, " B"]
    """Which of the sample's noise levels this row is."""
    regions: Float[Tensor, "B R ..."] | None = None
    """How much each latent element counts for each loss term; None: all alike, and terms are added up."""
    corrected: Bool[Tensor, " B"] | None = None
    """x0 is not the sample but what it should have been."""

    def __len__(self) -> int:
        return len(self.sigma)

    def index(self, rows: Int64[Tensor, " b"] | Bool[Tensor, " B"]) -> "Samples":
        return _index(self, rows)


@dataclass(frozen=True)
class Paths:
    """Trajectories that are taken up again with gradients: what a pathwise objective reads."""

    LATENTS: ClassVar[Mapping[str, int]] = {"states": 2}
    states: Float[Tensor, "B S ..."]
    """Stored states of the trajectory; the objective says which ones, and in which order."""
    sigmas: Float[Tensor, "B M"]
    """Noise levels that the row goes through; the objective says which."""
    advantages: Float[Tensor, "B R"]
    weight: Float[Tensor, " B"]
    condition: Int64[Tensor, " B"]
    prompt_slot: Int64[Tensor, " B"]
    seed_group: Int64[Tensor, " B"]
    sample: Int64[Tensor, " B"]
    step: Int64[Tensor, " B"]
    """Which of the sample's rows this is."""
    k: Float[Tensor, "B M"] | None = None
    """Of the step that led to each noise level (`flow.gaussian`), where the objective asks for it."""
    std: Float[Tensor, "B M"] | None = None
    chosen: Int64[Tensor, "B n"] | None = None
    """Which steps of the trajectory the loss looks at, where it does not take all."""

    def __len__(self) -> int:
        return len(self.sample)

    def index(self, rows: Int64[Tensor, " b"] | Bool[Tensor, " B"]) -> "Paths":
        return _index(self, rows)
