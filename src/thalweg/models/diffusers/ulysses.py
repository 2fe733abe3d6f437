"""Ulysses (Jacobs et al. 2023, arXiv:2309.14509): processes share a sample, each has some of its tokens.

The network's own plan (diffusers' `_cp_plan`) says where tokens are split and gathered again; attention
exchanges tokens for heads and back. Every process then has the whole output y, hence the same loss L, and
goes back through its own tokens y_p alone. As L depends on the weights through all of them,

    dL/dw = sum_p  dL/dy_p . dy_p/dw

so the gradients of a context are added, not averaged, provided that no trained weight comes after the
gathering; so it is in the families that `families.py` marks. The same holds for the input: what it is told
by the processes is added before it goes further back, as there all have the whole of it again.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models._modeling_parallel import ContextParallelConfig
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from thalweg.core.errors import UserError
from thalweg.core.processes import Context, Processes
from thalweg.core.values import Prompt
from thalweg.models.diffusers.modular import name_of
from thalweg.models.diffusers.policy import DiffusersPolicy

TEXT_AND_MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
"""What Qwen-Image calls its text, whose length is the prompt's, and the mask of it."""


def share_samples(policy: DiffusersPolicy, size: int, processes: Processes, prompt: Prompt) -> Processes:
    """Let each `size` neighbouring processes share their samples; they count as one from then on. `prompt` is
    any that the policy can encode.
    """
    for network in policy.networks.values():
        _require_plan(policy, network, size)
    if torch.accelerator.device_count() == 0:
        raise UserError(
            f"parallel.ulysses={size}: diffusers splits samples over accelerators, and there is none; leave "
            "it out"
        )
    count = processes.count // size
    mesh = init_device_mesh(policy.device.type, (count, 1, size), mesh_dim_names=("data", "ring", "ulysses"))
    context = _context(processes.rank, count, size)
    for network in policy.networks.values():
        _split(network, mesh, context)
    _require_divisible(policy, size, prompt)
    return Processes(processes.rank // size, count, context=context)


def _require_plan(policy: DiffusersPolicy, network: Any, size: int) -> None:
    """Raises where a network has no plan, or its heads do not split."""
    plan = getattr(network, "_cp_plan", None)
    if plan is None or not policy.family.shares_samples:
        family, lacking = (
            name_of(policy.pipeline),
            "no plan for it" if plan is None else "a plan without a test",
        )
        raise UserError(
            f"parallel.ulysses={size}: {family} cannot be split by its tokens ({type(network).__name__} has "
            f"{lacking}); leave it out"
        )
    heads = network.config["num_attention_heads"]
    if heads % size:
        raise UserError(
            f"parallel.ulysses={size}: the {heads} attention heads of {type(network).__name__} do not split "
            f"over {size} processes; give a number that divides {heads}"
        )


def _context(rank: int, count: int, size: int) -> Context:
    """This process's groups; all processes make all groups, in one order."""
    kinds = dist.get_backend_config()  # columns go by one backend, gradients by the other
    inside = [dist.new_group(range(i * size, (i + 1) * size), backend=kinds) for i in range(count)]
    across = [dist.new_group(range(i, count * size, size), backend=kinds) for i in range(size)]
    return Context(rank % size, size, inside[rank // size], across[rank % size])


def _split(network: Any, mesh: DeviceMesh, context: Context) -> None:
    network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=context.size, mesh=mesh))
    network.register_forward_pre_hook(partial(_add_slopes_of_inputs, context.inside), with_kwargs=True)


class _Whole(torch.autograd.Function):
    """Identity, whose gradient is the sum of the processes'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        slope = slopes[0].clone().contiguous()
        dist.all_reduce(slope, group=ctx.group)
        return slope, None


def _add_slopes_of_inputs(
    group: Any, network: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    options = _padded(options, dist.get_world_size(group))

    def whole(x: Tensor) -> Tensor:
        return _Whole.apply(x, group) if x.requires_grad else x  # type: ignore[no-any-return]

    return tree_map_only(Tensor, whole, (args, options))


def _padded(options: dict[str, Any], processes: int) -> dict[str, Any]:
    """The text of a network that takes a mask of its tokens, with as many more, masked, as let it split.

    What the masked ones compute is left out: nothing attends to them, and they are no part of the output.
    """
    text, mask = (options.get(name) for name in TEXT_AND_MASK)
    if not isinstance(text, Tensor) or TEXT_AND_MASK[1] not in options or text.shape[1] % processes == 0:
        return options
    more = -text.shape[1] % processes
    kept = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask.bool()
    filled = F.pad(text, (0, 0, 0, more)), F.pad(kept, (0, more))
    return options | dict(zip(TEXT_AND_MASK, filled, strict=True))


@torch.no_grad()
def _require_divisible(policy: DiffusersPolicy, size: int, prompt: Prompt) -> None:
    """Raises where a pass finds tokens that do not split; they are as many for every prompt, or padded."""
    condition, before = policy.encode([prompt]), policy.passes.evaluations
    x = torch.zeros(1, *policy.latent_shape, device=policy.device)
    try:
        policy.velocity(x, torch.ones(1), condition)
    except AssertionError as error:  # diffusers' own check, which names no numbers
        raise UserError(
            f"parallel.ulysses={size}: the tokens of {name_of(policy.pipeline)} do not split over "
            f"{size} processes ({error}); give model.height, width, num_frames and max_sequence_length that "
            f"make the tokens of the sample, and those of its text, multiples of {size}"
        ) from error
    policy.passes.evaluations = before
