"""Peak memory of this process."""

import resource
import sys

import torch


def peak_megabytes(device: torch.device) -> float:
    """Largest memory so far: allocated on an accelerator, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
