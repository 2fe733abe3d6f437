"""How a run lives on its processes."""

from dataclasses import replace
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.models import Policy


class RayWorkers(Part):
    """Workers of a Ray cluster, each with a model of its own, that grow the samples of an iteration."""

    kind: Literal["ray"] = "ray"
    count: PositiveInt = 1
    """Of each process of the run."""
    cpus_per_worker: NonNegativeFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    """Accelerators that Ray keeps for a worker."""
    address: str | None = None
    """Of a cluster, such as `auto`; None is RAY_ADDRESS, or else a cluster of this machine and this run."""
    start_timeout: PositiveFloat = 600.0
    """Seconds to wait for all workers to have their model."""
    timeout: PositiveFloat = 3600.0
    """Seconds to wait for an iteration's samples."""


class Parallel(Part):
    """The `parallel` section; it changes memory and speed, and results by rounding only."""

    weights: Literal["replicated", "fsdp"] = "replicated"
    """Each process holds all weights, or a shard of them (FSDP2: Zhao et al. 2023, arXiv:2304.11277)."""
    ulysses: PositiveInt = 1
    """Processes that share each sample, split by its tokens (Jacobs et al. 2023, arXiv:2309.14509)."""
    workers: RayWorkers | None = None
    """Who grows samples; None: the processes of the run."""

    def shards(self, processes: int) -> int:
        """Into how many parts the weights are cut."""
        return processes if self.weights == "fsdp" else 1

    def contexts(self, processes: int) -> int:
        """How many groups of processes have samples of their own; raises UserError where some processes are
        left over.
        """
        if processes % self.ulysses:
            raise UserError(
                f"parallel.ulysses={self.ulysses} does not divide the number of processes, {processes}: "
                f"start a multiple of {self.ulysses} with torchrun, or give another number"
            )
        return processes // self.ulysses


def place(policy: Policy, parallel: Parallel, processes: Processes, prompt: Prompt) -> Processes:
    """Put the weights where they will stay; the processes as they then work together."""
    if parallel.ulysses > 1:
        # A recipe with another model is refused when it is read.
        from thalweg.models.diffusers.policy import DiffusersPolicy
        from thalweg.models.diffusers.ulysses import share_samples

        assert isinstance(policy, DiffusersPolicy)
        return share_samples(policy, parallel.ulysses, processes, prompt)
    if parallel.shards(processes.count) == 1:
        return processes
    from thalweg.models.sharding import shard  # not every torch has torch.distributed

    return replace(processes, turns=shard(policy, prompt, processes))
