"""What a miniature world offers: prompts, a network with shipped weights, and an exact judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.core.values import Prompt


@runtime_checkable
class Judgement(Protocol):
    """How an image answers its prompt."""

    @property
    def strict(self) -> bool:
        """Everything asked for and nothing else."""
        ...

    @property
    def score(self) -> float:
        """Partial credit in [0, 1]."""
        ...


@dataclass(frozen=True)
class World:
    """A miniature task with an exact reward."""

    name: str
    summary: str
    image_shape: tuple[int, int, int]
    weights: Path
    """The shipped base model."""
    training_prompts: Callable[[], tuple[Prompt, ...]]
    held_out_prompts: Callable[[], tuple[Prompt, ...]]
    """Prompts that no training has seen; each one's metadata names its `task`."""
    tokenize: Callable[[Sequence[str]], Int[Tensor, "B L"]]
    judge: Callable[[Float[Tensor, "C H W"], Prompt], Judgement]
    attributes: Callable[[Float[Tensor, "C H W"]], tuple[str, ...]]
    """Labels of what an image shows, for diversity."""
    draw: Callable[[Prompt, np.random.Generator], Float[np.ndarray, "C H W"]]
    """A picture in [0, 1] of what a prompt asks for."""
    spoil: Callable[[Prompt, np.random.Generator], Float[np.ndarray, "C H W"]]
    """The picture that `draw` makes of this generator, but for one thing that is wrong."""
    blame: Callable[[Float[Tensor, "C H W"], Prompt], Float[Tensor, "H W"]] | None = None
    """1 at the pixels for which an image misses its prompt, 0 elsewhere; all 0 where it is right."""
    scorer: Path | None = None
    """The shipped network that tells from noisy latents how a sample will turn out."""
