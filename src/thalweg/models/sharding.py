"""Weights in shards: each process holds a part of every network and gathers a block when a pass reaches it.

Native FSDP2 (`torch.distributed.fsdp.fully_shard`), block by block and then the rest of the network, which
keeps the modules' names and attributes. Everything sharded is gathered for one pass and let go after it, so
that what processes exchange depends on the pass alone, never on those before it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_map_only

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.models.contract import Policy
from thalweg.models.turns import Call, Turns

LEVELS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.02)
"""Noise levels at which networks are looked for: some are used in a part of the levels only."""


@runtime_checkable
class Shardable(Protocol):
    """A policy that shows its networks, and passes them by calling them alone."""

    networks: Mapping[str, nn.Module]
    """By name; together they hold all trained parameters."""


def shard(policy: Policy, prompt: Prompt, processes: Processes) -> Turns:
    """Cut the networks, and every named set of weights, over the processes; `prompt` is any that the policy
    can encode.
    """
    if not isinstance(policy, Shardable):
        raise UserError(
            f"parallel.weights='fsdp': {type(policy).__name__} does not show its networks; give it a mapping "
            "`networks`, or use replicated"
        )
    calls = _some_calls(policy, policy.networks, prompt)
    modules = [module for network in policy.networks.values() for module in network.modules()]
    places = {id(p): (m, key) for m in modules for key, p in m.named_parameters(recurse=False)}
    if homeless := [name for name, p in policy.weights.parameters.items() if id(p) not in places]:
        raise UserError(
            f"parallel.weights='fsdp': the trained '{homeless[0]}' is in none of the policy's networks; add "
            "its module to `networks`, or use replicated"
        )
    places_of = {name: places[id(parameter)] for name, parameter in policy.weights.parameters.items()}
    mesh = init_device_mesh(policy.device.type, (processes.count,))
    for network in policy.networks.values():
        for part in (*blocks_of(network), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    turns = Turns(policy.weights, policy.networks, calls)
    policy.weights.shard({n: getattr(module, key) for n, (module, key) in places_of.items()}, turns)
    return turns


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """What repeats in a network: modules of the classes that it names, else members of its longest list."""
    classes = {
        *(getattr(network, "_repeated_blocks", None) or ()),
        *(getattr(network, "_no_split_modules", None) or ()),
    }
    named = [m for m in network.modules() if type(m).__name__ in classes and m is not network]
    inner = {id(m) for outer in named for m in outer.modules() if m is not outer}
    if outermost := [m for m in named if id(m) not in inner]:
        return outermost
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def _some_calls(policy: Policy, networks: Mapping[str, nn.Module], prompt: Prompt) -> dict[str, Call]:
    """What each network is called with for one row."""
    condition, before = policy.encode([prompt]), policy.passes.evaluations
    x = torch.zeros(1, *policy.latent_shape, device=policy.device)
    with _listening(networks) as calls, torch.no_grad():
        for level in LEVELS:
            if len(calls) < len(networks):
                policy.velocity(x, torch.full((1,), level), condition)
    policy.passes.evaluations = before
    if silent := [name for name in networks if name not in calls]:
        raise UserError(
            f"parallel.weights='fsdp': '{silent[0]}' takes part at no noise level, so that its shards cannot "
            "be kept in step; use replicated"
        )
    return calls


@contextmanager
def _listening(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Inside, the last call of each network."""
    calls: dict[str, Call] = {}

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            calls[name] = Call(*tree_map_only(torch.Tensor, torch.clone, (args, options)))

        return listen

    hooks = [n.register_forward_pre_hook(listener(name), with_kwargs=True) for name, n in networks.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
