"""One clipped ratio for a chunk of consecutive steps, GCPO (arXiv:2510.21583; xingzhejun/GCPO).

    rho_C = exp( mean over steps of C of (log p_theta - log p_old) ),      one clipped term a chunk

A chunk of one step gives the step ratio, one chunk of all steps a sequence ratio. The loss spans several
network passes and depends on them through log-probabilities alone, so two sweeps give its exact gradient in
the memory of one pass. Shapes: B rows, U chunks, R rewards, ... latent axes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
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
        return rows

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
        ends = torch.tensor(self.chunks).cumsum(0)
        chunk = torch.bucketize(rows.step - rows.step.min(), ends, right=True)
        units, unit = torch.unique(torch.stack([rows.sample, chunk], 1), dim=0, return_inverse=True)
        size = len(units)
        count = torch.zeros(size).index_add(0, unit, torch.ones(len(unit)))

        def mean(column: Tensor) -> Tensor:
            shape = (size, *column.shape[1:])
            total = torch.zeros(shape, dtype=column.dtype).index_add(0, unit, column)
            return total / count.view(-1, *[1] * (column.ndim - 1))

        log_ratio = mean(scalars["log_prob"] - rows.old_log_prob)
        terms, clip_fraction = clipped(log_ratio, mean(rows.advantages), self.clip_range)
        return terms * mean(rows.weight), {"clip_fraction": clip_fraction, "log_ratio": log_ratio.detach()}
