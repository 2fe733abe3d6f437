"""Addressed noise: every random draw of a run has an address, and the address alone decides its value.

    (seed, purpose, iteration, prompt slot, seed group, node path, step)  --blake2b-->  64 bits  --Philox-->
    numbers

So a result does not change with the number of processes, the micro-batch or an interruption, and two places
that shall see the same noise share the address. Philox rather than torch's generator: on CPU torch keeps only
32 bits of a seed, and a long run draws often enough for two of those to collide.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

Purpose = Literal[
    "initial", "transition", "guidance", "forward noise", "sigmas", "order", "selection", "given", "size"
]


@dataclass(frozen=True)
class Address:
    """Where a draw belongs; its methods give the numbers found there, the same ones every time."""

    seed: int
    purpose: Purpose
    iteration: int = 0
    prompt_slot: int = 0
    seed_group: int = 0
    path: tuple[int, ...] = ()
    """Which child was taken at each fork above the node; empty for a plain chain."""
    step: int = 0

    def key(self) -> int:
        """The address as 64 stable bits."""
        numbers = (self.seed, self.iteration, self.prompt_slot, self.seed_group, self.step, *self.path)
        packed = self.purpose.encode() + b"\0" + struct.pack(f"<{len(numbers)}q", *numbers)
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")

    def generator(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.key()))

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "..."]:
        """Standard normal numbers, float32, on the CPU."""
        return torch.from_numpy(self.generator().standard_normal(tuple(shape), dtype=np.float32))

    def uniform(self, shape: Sequence[int]) -> Float[Tensor, "..."]:
        """Uniform numbers in [0, 1), float32, on the CPU."""
        return torch.from_numpy(self.generator().random(tuple(shape), dtype=np.float32))

    def permutation(self, count: int) -> Int64[Tensor, " count"]:
        """The numbers 0 .. count - 1 in random order."""
        return torch.from_numpy(self.generator().permutation(count))


def normals(addresses: Sequence[Address], shape: Sequence[int]) -> Float[Tensor, "B ..."]:
    """One draw of `shape` for each address, stacked."""
    out = np.empty((len(addresses), *shape), dtype=np.float32)
    for row, address in zip(out, addresses, strict=True):
        address.generator().standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(out)
