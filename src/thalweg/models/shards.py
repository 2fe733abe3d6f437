"""Tensors of which each process may hold a shard: rows of the first axis, as FSDP2 cuts them."""

import torch
import torch.distributed as dist
from torch import Tensor

SHARD: tuple[type, ...] = ()
if dist.is_available():  # not in every torch
    from torch.distributed.tensor import DTensor

    SHARD = (DTensor,)


def local(tensor: Tensor) -> Tensor:
    """What this process holds, sharing memory."""
    return tensor.to_local() if isinstance(tensor, SHARD) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of it. Of a shard, every process must ask together."""
    return tensor.full_tensor() if isinstance(tensor, SHARD) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def put(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values in; of a shard, this process's rows."""
    if not isinstance(tensor, SHARD):
        tensor.copy_(values)
        return
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    parts = values.chunk(mesh.size())  # fewer than processes where rows are few
    if mesh.get_local_rank() < len(parts):
        local(tensor).copy_(parts[mesh.get_local_rank()])
