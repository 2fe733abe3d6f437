"""Several processes, one run: torch.distributed as it is, started by torchrun.

Every process grows its own roots and adds its gradients to the others'. It holds the whole network, or a
shard of it (`models.sharding`), and whole samples, or a part of each one's tokens. Group statistics see the
rows of all processes, in an order that does not depend on how many there are.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count as count_from
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from thalweg.core.errors import UserError

MEETING = timedelta(minutes=5)
"""How long processes wait for the others at the start."""
_CONNECTIONS = count_from(1)
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""What others than torchrun call the number of processes that they started."""


@runtime_checkable
class Turns(Protocol):
    """Where network passes are made by all processes at once."""

    def meet(self) -> None:
        """Take part in the passes of the others until none has any left."""
        ...


@dataclass(frozen=True)
class Context:
    """The processes that this one shares its samples with: each has a part of every sample's tokens."""

    position: int
    """Of this process among them."""
    size: int
    inside: Any
    """torch.distributed's group of these processes."""
    across: Any
    """The group of those at the same position of all contexts: they hold different samples."""


@dataclass(frozen=True)
class Processes:
    """This process among all of the run; those that share their samples count as one."""

    rank: int = 0
    count: int = 1
    turns: Turns | None = None
    """Set where the network lives in shards: whoever waits for the others takes part in their passes."""
    context: Context | None = None
    """Set where several processes share each sample."""

    @property
    def is_first(self) -> bool:
        """Of all: who writes."""
        return self.rank == 0 and (self.context is None or self.context.position == 0)

    @property
    def total(self) -> int:
        """How many there are when each is counted."""
        return self.count * (1 if self.context is None else self.context.size)

    def share(self, total: int) -> range:
        """This process's part of 0 .. total - 1; parts are contiguous, in order of rank."""
        return range(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def gather(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of all processes, in order of rank: columns of any trailing shape, the first axis joined."""
        if self.count == 1:
            return self.as_first(columns)
        self.meet()
        across = None if self.context is None else self.context.across
        mine = len(next(iter(columns.values())))
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([mine]), across)
        longest = int(max(sizes))
        joined = {}
        for name, column in columns.items():
            padded = torch.zeros(longest, *column.shape[1:], dtype=column.dtype)
            padded[:mine] = column
            parts = [torch.zeros_like(padded) for _ in range(self.count)]
            dist.all_gather(parts, padded, across)
            joined[name] = torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
        return self.as_first(joined)

    def as_first(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns of the first process that holds the same samples: a judge may answer each otherwise."""
        if self.context is None:
            return dict(columns)
        told = {name: column.detach().clone().contiguous() for name, column in columns.items()}
        for column in told.values():
            if column.numel():
                dist.broadcast(column, self.rank * self.context.size, self.context.inside)
        return told

    def add(self, tensors: Sequence[Tensor], *, of_parts: bool = False) -> None:
        """Replace each tensor by its sum over processes, in one message.

        What processes that share their samples have in common counts once; with `of_parts` each of them has
        a part of it, as of a gradient, and all count.
        """
        if not tensors or (self.total if of_parts else self.count) == 1:
            return
        self.meet()
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat, group=None if of_parts or self.context is None else self.context.across)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.total == 1:
            return flag
        self.meet()
        seen = torch.tensor([float(flag)])
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen)

    def agree(self, text: str) -> str:
        """The text that the first process gives."""
        if self.total == 1:
            return text
        self.meet()
        letters = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor([len(letters)])
        dist.broadcast(size, 0)
        letters = letters if self.is_first else torch.zeros(int(size), dtype=torch.uint8)
        dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()

    def texts(self, text: str) -> list[str]:
        """The text of every process, in order of rank."""
        letters = torch.tensor(list(text.encode()), dtype=torch.uint8)
        sizes = self.gather({"size": torch.tensor([len(letters)])})["size"].tolist()
        parts = self.gather({"letters": letters})["letters"].split(sizes)
        return [bytes(part.tolist()).decode() for part in parts]

    def wait(self) -> None:
        if self.total > 1:
            self.meet()
            dist.barrier()

    def meet(self) -> None:
        """Have no network pass left that another process needs; every message between them comes after."""
        if self.turns is not None:
            self.turns.meet()


def connect() -> Processes:
    """Join the processes that torchrun started; alone without its variables.

    Raises UserError where a launcher started several that cannot find each other.
    """
    count = _launched()
    if count == 1:
        return Processes()
    if not dist.is_available():
        raise UserError(f"WORLD_SIZE={count}: this torch has no torch.distributed; install one that has")
    if not dist.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"  # columns go by one, gradients by the other
        place, rank = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", int(os.environ["RANK"])
        try:
            store = _meeting_place(place)
        except dist.DistError as error:
            raise UserError(
                f"WORLD_SIZE={count}: the processes did not meet at {place} within "
                f"{MEETING.total_seconds():.0f} s ({str(error).splitlines()[0]}); start all of them, with an "
                "address that all machines reach"
            ) from error
        from torch.distributed.distributed_c10d import PrefixStore  # not in every torch

        fresh = PrefixStore(f"thalweg {next(_CONNECTIONS)}", store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=count)
    return Processes(dist.get_rank(), dist.get_world_size())


@cache
def _meeting_place(address: str) -> Any:
    """Kept as long as the process: one that trains twice could else still find the first run's."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", timeout=MEETING))[0]


def _launched() -> int:
    """How many processes the environment says there are; raises UserError where it contradicts itself."""
    given = os.environ.get("WORLD_SIZE")
    if given is None:
        for name in (*LAUNCHERS, "RANK"):
            if os.environ.get(name, "1") != "1" or (name == "RANK" and name in os.environ):
                raise UserError(
                    f"{name}={os.environ[name]} and no WORLD_SIZE: each process would train alone, in one "
                    "folder; start them with torchrun, or give WORLD_SIZE=1 to trainings that shall be alone"
                )
        return 1
    if not given.isdigit() or int(given) == 0:
        raise UserError(f"WORLD_SIZE={given}: a number of processes; start them with torchrun")
    count = int(given)
    if count == 1:
        return 1
    if lacking := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"WORLD_SIZE={count} and no {lacking[0]}: the processes cannot find each other; start them with "
            "torchrun, which sets all of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    rank = os.environ["RANK"]
    if not rank.isdigit() or int(rank) >= count:
        raise UserError(
            f"RANK={rank}, WORLD_SIZE={count}: ranks go from 0 to {count - 1}; start with torchrun"
        )
    return count


def is_first_process() -> bool:
    """Whether this process writes and prints, told from torchrun's variables alone."""
    return os.environ.get("RANK", "0") == "0"


def disconnect(processes: Processes) -> None:
    """Leave the group, if there is one."""
    if processes.total > 1 and dist.is_initialized():
        dist.destroy_process_group()
