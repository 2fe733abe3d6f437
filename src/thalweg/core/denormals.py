"""Denormal numbers slow a CPU down manifold and carry nothing: inside the block they are 0."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """The setting belongs to the whole process, so it is put back."""
    before = _are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _are_flushed() -> bool:
    return float(torch.tensor(5e-324, dtype=torch.float64) * 1.0) == 0.0
