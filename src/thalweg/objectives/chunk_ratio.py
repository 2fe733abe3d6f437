"""One clipped ratio for a chunk of consecutive steps, GCPO (arXiv:2510.21583; xingzhejun/GCPO).

    q_C = mean over steps of C of (log p_theta - log p_old),      rho_C = exp(q_C),      one clipped term each

A chunk of one step gives the step ratio, one chunk of all steps a sequence ratio. The loss spans several
network passes and depends on them through log-probabilities alone, so two sweeps give its exact gradient in
the memory of one pass. Shapes: B rows, U chunks, R rewards, ... latent axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.values import Transitions
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.path_rows import transitions
from thalweg.objectives.ratio import clipped, transition_of


class ChunkRatio(Part):
    """One loss term a chunk."""

    kind: Literal["chunk_ratio"] = "chunk_ratio"
    clip_range: float = Field(default=5e-5, gt=0)
    """c: the chunk's ratio is held in [1-c, 1+c]."""
    chunks: tuple[int, ...] = Field(min_length=1)
    """Sizes of the chunks, from noise to data; they add up to the trained steps."""
    chunk_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each sample's chunks that is trained on, drawn anew for every sample (GCPO: 0.5); at least
    one.
    """
    chunk_weights: tuple[PositiveFloat, ...] | None = None
    """Draw chunks with these odds; None: all alike. GCPO's weighted sampling takes the mean relative change
    of the latents over each chunk, which `thalweg doctor` measures.
    """
    kl_weight: NonNegativeFloat = 0.0
    """Of exp(-q) + q - 1, an estimate of the divergence from the weights that drew the samples."""

    @model_validator(mode="after")
    def _consistent(self) -> "ChunkRatio":
        if self.chunk_weights is not None and len(self.chunk_weights) != len(self.chunks):
            raise ValueError(
                f"chunk_weights={list(self.chunk_weights)}: {len(self.chunk_weights)} odds for "
                f"{len(self.chunks)} chunks; give one each"
            )
        return self

    @property
    def unit(self) -> Unit:
        return "sample"

    @property
    def anchors(self) -> tuple[str, ...]:
        return ()

    def clip_of(self, num_elements: int) -> float:
        """c, whatever the size of the latents."""
        return self.clip_range

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Transitions:
        rows = transitions(forest, advantages)
        trained = torch.unique(rows.step)
        if len(trained) != sum(self.chunks):
            raise ValueError(
                f"objective.chunks={list(self.chunks)} adds up to {sum(self.chunks)} steps, but the "
                "rollout trains "
                f"{len(trained)}; make them equal"
            )
        chunk = self._number(torch.searchsorted(trained, rows.step))
        rows = replace(rows, chunk=chunk)
        return (
            rows
            if self.chunks_per_sample == len(self.chunks)
            else rows.index(self._drawn(rows, seed, iteration))
        )

    @property
    def chunks_per_sample(self) -> int:
        """How many chunks of a sample are trained on."""
        return max(1, int(self.chunk_fraction * len(self.chunks)))

    def _number(self, place: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """The chunk of the place-th trained step."""
        return torch.bucketize(place, torch.tensor(self.chunks).cumsum(0), right=True)

    def _drawn(self, rows: Transitions, seed: int, iteration: int) -> Bool[Tensor, " B"]:
        """Rows of the chunks drawn for each sample, without replacement: those with the largest
        log(odds) + Gumbel noise (Vieira 2014; Kool et al. 2019, arXiv:1903.06059).
        """
        assert rows.chunk is not None
        odds = torch.tensor(self.chunk_weights or (1.0,) * len(self.chunks))
        keep = torch.zeros(len(rows), dtype=torch.bool)
        for sample in rows.sample.unique().tolist():
            draw = Address(seed, "selection", iteration, path=(sample, 1)).uniform((len(odds),))
            taken = (odds.log() - (-draw.log()).log()).topk(self.chunks_per_sample).indices
            keep |= (rows.sample == sample) & torch.isin(rows.chunk, taken)
        return keep

    def inputs(self, rows: Transitions) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return rows.x, rows.sigma

    def measure(
        self,
        rows: Transitions,
        x: Float[Tensor, "B ..."],
        velocity: Float[Tensor, "B ..."],
        anchors: Mapping[str, Float[Tensor, "B ..."]],
    ) -> Scalars:
        return {"log_prob": transition_of(rows, velocity).log_prob(rows.x_next)}

    def loss(
        self, scalars: Scalars, rows: Transitions
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        assert rows.chunk is not None
        units, unit = torch.unique(torch.stack([rows.sample, rows.chunk], 1), dim=0, return_inverse=True)
        size = len(units)
        count = torch.zeros(size).index_add(0, unit, torch.ones(len(unit)))

        def mean(column: Tensor) -> Tensor:
            shape = (size, *column.shape[1:])
            total = torch.zeros(shape, dtype=column.dtype).index_add(0, unit, column)
            return total / count.view(-1, *[1] * (column.ndim - 1))

        log_ratio = mean(scalars["log_prob"] - rows.old_log_prob)
        terms, clip_fraction = clipped(log_ratio, mean(rows.advantages), self.clip_range)
        report = {"clip_fraction": clip_fraction, "log_ratio": log_ratio.detach()}
        if self.kl_weight:
            divergence = (-log_ratio).exp() + log_ratio - 1
            terms = terms + self.kl_weight * divergence
            report["kl_to_old"] = divergence.detach()
        return terms * mean(rows.weight), report


def relative_change(rows: Transitions) -> Float[Tensor, " K"]:
    """|x_next - x|_1 / |x|_1 of each trained step, a mean over samples; its course hardly depends on the
    prompt.
    """
    change = (rows.x_next - rows.x).flatten(1).abs().sum(1) / rows.x.flatten(1).abs().sum(1)
    return torch.stack([change[rows.step == step].mean() for step in rows.step.unique()])


def chunks_of(change: Float[Tensor, " K"], order: int = 1) -> tuple[int, ...]:
    """Sizes of chunks that are cut where the change over a step begins to fall or to rise: where its
    `order`-th difference changes its sign. Higher orders find more places. Our reading of which side a
    turning step falls to: it begins the new chunk.
    """
    turn = change.diff(n=order).sign()
    cuts = ((turn[1:] * turn[:-1] < 0).nonzero().flatten() + (order + 1) // 2).tolist()
    ends = [*cuts, len(change)]
    return tuple(end - start for start, end in zip([0, *cuts], ends, strict=True))
