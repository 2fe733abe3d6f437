"""How a run lives on its processes."""

from dataclasses import replace
from typing import Literal

from thalweg.core.part import Part
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.models import Policy


class Parallel(Part):
    """The `parallel` section; it changes memory and speed, and results by rounding only."""

    weights: Literal["replicated", "fsdp"] = "replicated"
    """Each process holds all weights, or a shard of them (FSDP2: Zhao et al. 2023, arXiv:2304.11277)."""

    def shards(self, processes: int) -> int:
        """Into how many parts the weights are cut."""
        return processes if self.weights == "fsdp" else 1


def place(policy: Policy, parallel: Parallel, processes: Processes, prompt: Prompt) -> Processes:
    """Put the weights where they will stay; the processes as they then work together."""
    if parallel.shards(processes.count) == 1:
        return processes
    from thalweg.models.sharding import shard  # not every torch has torch.distributed

    return replace(processes, turns=shard(policy, prompt, processes))
