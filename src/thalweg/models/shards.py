"""Tensors of which each process may hold a shard: rows of the first axis, as FSDP2 cuts them."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds, sharing memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it. Of a shard, every process must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(tensor: Tensor, values: Tensor) -> None:
    """Copy whole values in; of a shard, this process's rows."""
    if not isinstance(tensor, DTensor):
        tensor.copy_(values)
        return
    parts = values.chunk(tensor.device_mesh.size())  # fewer than processes where rows are few
    rank = tensor.device_mesh.get_local_rank()
    if rank < len(parts):
        tensor.to_local().copy_(parts[rank])
