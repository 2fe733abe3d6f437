"""One order of network passes on all processes, whatever each of them has to do.

With sharded weights a pass of a network, and the backward pass behind it, is made by all processes together
and under the same named weights. Pruned trees, filtered groups, uneven shares and networks that are chosen
by the noise level give them different passes. So before each pass they agree whose turn it is: the smallest
number wins,

    0  a pass of a process whose loss spans several and is not complete
    1  a backward pass
    2  any other pass
    3  nothing: the process waits for the others

Who asked for it makes its own; the others repeat a stored call of one row, whose loss has weight 0, and count
it. When all wait, all go on. The agreement costs one message of 8 bytes a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from thalweg.models.weights import NamedWeights

UNFINISHED, BACKWARD, FRESH, NOTHING = range(4)
MODES = ("without gradient", "to weights", "to weights and input")


@dataclass(frozen=True)
class Call:
    """Arguments of a network for one row."""

    args: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """What all processes must have in common."""

    weights: str
    network: str
    mode: Literal["without gradient", "to weights", "to weights and input"]
    """Where gradients go. Of a backward pass that keeps none for the weights: "without gradient"."""


class Turns:
    """Keeps the passes of sharded networks in one order; fulfils `core.processes.Turns`."""

    def __init__(
        self, weights: NamedWeights, networks: Mapping[str, nn.Module], calls: Mapping[str, Call]
    ) -> None:
        self.padded = 0
        """Passes that this process made for the sake of others."""
        self._weights, self._networks, self._calls = weights, dict(networks), dict(calls)
        self._kinds = [Kind(*kind) for kind in product(weights.names, networks, MODES)]  # type: ignore[arg-type]
        self._open: list[Tensor] = []
        """Outputs that wait for a backward pass: the same number on all processes."""
        self._own = 0
        """How many of them this process asked for."""
        self._repeats, self._goes_back = False, False
        for name, network in networks.items():
            network.register_forward_pre_hook(partial(self._before, name), prepend=True, with_kwargs=True)
            network.register_forward_hook(self._after)

    def meet(self) -> None:
        """Take part in the passes of the others until none has any left."""
        while (turn := self._agree(NOTHING * len(self._kinds))) < NOTHING * len(self._kinds):
            self._repeat(turn)

    def backward(
        self, outputs: Sequence[Tensor], slopes: Sequence[Tensor | None], *, keep: bool = True
    ) -> None:
        """Back-propagate, together with every pass that is open; `keep` adds to the gradients of weights."""
        mode = "to weights" if keep else "without gradient"
        kind = Kind(self._weights.active, next(iter(self._networks)), mode)
        self._wait_for(BACKWARD, kind)
        self._go_back(outputs, slopes, keep)

    def _before(self, name: str, network: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if self._repeats or self._goes_back:  # a block may compute its passes again
            return
        mode = "without gradient"
        if torch.is_grad_enabled():
            tensors = [t for t in tree_flatten((args, options))[0] if isinstance(t, Tensor)]
            mode = "to weights and input" if any(t.requires_grad for t in tensors) else "to weights"
        self._wait_for(UNFINISHED if self._own else FRESH, Kind(self._weights.active, name, mode))

    def _after(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._goes_back and torch.is_grad_enabled():
            self._open += [t for t in tree_flatten(output)[0] if isinstance(t, Tensor) and t.requires_grad]
            self._own += not self._repeats

    def _wait_for(self, urgency: int, kind: Kind) -> None:
        """Take part in the passes of others until it is this one's turn."""
        number, size = self._kinds.index(kind), len(self._kinds)
        while True:
            turn = self._agree(urgency * size + number)
            # A pass is the same whether the process that asked for it was in the middle of its loss or not.
            if turn % size == number and (turn // size == BACKWARD) == (urgency == BACKWARD):
                return
            self._repeat(turn)

    def _agree(self, wish: int) -> int:
        turn = torch.tensor([wish])
        dist.all_reduce(turn, dist.ReduceOp.MIN)
        return int(turn)

    def _repeat(self, turn: int) -> None:
        """Make a pass that another process asked for."""
        urgency, kind = turn // len(self._kinds), self._kinds[turn % len(self._kinds)]
        with self._weights.lend(kind.weights):
            if urgency == BACKWARD:
                self._go_back([], [], keep=kind.mode == "to weights")
            else:
                self._call_again(kind)

    def _call_again(self, kind: Kind) -> None:
        call = self._calls[kind.network]
        flat, shape = tree_flatten((call.args, dict(call.options)))
        if kind.mode == "to weights and input":
            first = next(i for i, t in enumerate(flat) if isinstance(t, Tensor) and t.is_floating_point())
            flat[first] = flat[first].detach().requires_grad_()
        args, options = tree_unflatten(flat, shape)
        self._repeats = True
        try:
            with torch.set_grad_enabled(kind.mode != "without gradient"):
                self._networks[kind.network](*args, **options)
        finally:
            self._repeats = False
        self.padded += 1

    def _go_back(self, outputs: Sequence[Tensor], slopes: Sequence[Tensor | None], keep: bool) -> None:
        opened, self._open, self._own = self._open, [], 0
        parameters = list(self._weights.parameters.values())
        before = [p.grad for p in parameters]
        if not keep:
            for parameter in parameters:
                parameter.grad = None
        # Outputs that a loss does not read are gone through too, as on the processes that repeat them.
        zeros = [torch.zeros_like(output) for output in opened]
        self._goes_back = True
        try:
            torch.autograd.backward([*outputs, *opened], [*slopes, *zeros])  # type: ignore[arg-type]
        finally:
            self._goes_back = False
        if not keep:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
