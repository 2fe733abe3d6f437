"""Named weights: several sets of values for the trainable parameters of one network.

`policy` is the set the optimiser steps. Any other name (`old`, `reference`, `evaluation`, `teacher.ocr`)
holds a copy of the trainable tensors alone: with LoRA that is an adapter, in full fine-tuning a whole
network. Switching exchanges the storage under the parameters, so it costs nothing and leaves `requires_grad`
as it is. Shards (`models.sharding`) belong to their network, so there the values are exchanged.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from thalweg.models.shards import local, put

POLICY = "policy"


class _Token:
    """Stands for one autograd graph; alive and listed as long as the graph waits for its backward pass."""


class _Watch(torch.autograd.Function):
    """Identity that takes its token off the list when gradients arrive."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, token: _Token, open_graphs: "weakref.WeakSet[_Token]") -> Tensor:
        ctx.token, ctx.open_graphs = token, open_graphs
        open_graphs.add(token)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.open_graphs.discard(ctx.token)
        return grads[0], None, None


@runtime_checkable
class Together(Protocol):
    """Where backward passes are made by all processes at once (`models.turns`)."""

    padded: int

    def backward(
        self, outputs: Sequence[Tensor], slopes: Sequence[Tensor | None], *, keep: bool = True
    ) -> None: ...


class NamedWeights:
    """The table name -> values of the trainable parameters, and which of them the network computes with."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._sets: dict[str, dict[str, Tensor]] = {POLICY: {n: p.data for n, p in self.parameters.items()}}
        self._active = POLICY
        self.guidance: dict[str, float] = {}
        """Guidance scales of sets that are guided in another way than the model."""
        self._open_graphs: weakref.WeakSet[_Token] = weakref.WeakSet()
        self.turns: Together | None = None
        """Set where the parameters are shards."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sets)

    @property
    def active(self) -> str:
        """The set in use."""
        return self._active

    @property
    def padded_passes(self) -> int:
        """Network passes that this process made for the sake of others."""
        return 0 if self.turns is None else self.turns.padded

    def guidance_scale(self, of_model: float) -> float:
        """That of the set in use."""
        return self.guidance.get(self._active, of_model)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The values of one set, by parameter name: the live tensors, not copies."""
        if name not in self._sets:
            raise ValueError(f"weights '{name}': no such set; the run has {', '.join(self._sets)}")
        if self.turns is not None and name == self._active:
            return {n: p.detach() for n, p in self.parameters.items()}
        return self._sets[name]

    def add(self, name: str, source: str = POLICY) -> None:
        """A new set that starts as a copy of `source`."""
        if name in self._sets:
            raise ValueError(f"weights '{name}': the name is taken; choose another")
        self._sets[name] = {n: t.detach().clone() for n, t in self.tensors(source).items()}

    def shard(self, parameters: Mapping[str, nn.Parameter], turns: Together) -> None:
        """Go over to the shards of the same parameters; every set is cut as they are."""
        assert self._active == POLICY
        self.parameters, self.turns = dict(parameters), turns
        for name, tensors in self._sets.items():
            if name == POLICY:
                continue
            for n, tensor in tensors.items():
                tensors[n] = torch.empty_like(self.parameters[n].detach())
                put(tensors[n], tensor)
        self._sets[POLICY] = {}

    @torch.no_grad()
    def blend(self, name: str, source: str, keep: float) -> None:
        """name <- keep * name + (1 - keep) * source; keep = 0 copies exactly."""
        for target, new in zip(self.tensors(name).values(), self.tensors(source).values(), strict=True):
            mine, theirs = local(target), local(new)
            mine.copy_(theirs) if keep == 0 else mine.lerp_(theirs, 1 - keep)

    def watch(self, output: Tensor) -> Tensor:
        """Mark a network output with a gradient: until its backward pass, no switching."""
        return _Watch.apply(output, _Token(), self._open_graphs) if output.requires_grad else output  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to the parameters'."""
        loss.backward() if self.turns is None else self.turns.backward([loss], [None])

    def pull_back(self, output: Tensor, to: Tensor, slope: Tensor) -> Tensor:
        """(d output / d to)^T slope, for a leaf `to`; adds nothing to the parameters' gradients."""
        if self.turns is None:
            return torch.autograd.grad(output, to, slope)[0]
        self.turns.backward([output], [slope], keep=False)
        assert to.grad is not None
        pulled, to.grad = to.grad, None
        return pulled

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Compute with the named set inside the block.

        Raises RuntimeError while a graph waits for its backward pass: autograd would read the exchanged
        values and the gradient would be silently wrong.
        """
        before = self._active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    @contextmanager
    def lend(self, name: str) -> Iterator[None]:
        """`use` for a shard's part in another process's pass, which open graphs of this one do not forbid:
        their backward pass gathers the values of the set that they were made under once more.
        """
        before = self._active
        self._exchange(name)
        try:
            yield
        finally:
            self._exchange(before)

    def _switch(self, name: str) -> None:
        if name != self._active and self._open_graphs:
            raise RuntimeError(
                f"weights: cannot switch from '{self._active}' to '{name}' while {len(self._open_graphs)} "
                "network pass(es) wait for backward; make the passes without gradient first"
            )
        self._exchange(name)

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        if name == self._active:
            return
        tensors = self.tensors(name)
        for parameter_name, parameter in self.parameters.items():
            if self.turns is None:
                parameter.data = tensors[parameter_name]
            else:
                mine, other = local(parameter), local(tensors[parameter_name])
                held = mine.clone()
                mine.copy_(other)
                other.copy_(held)
        if self.turns is not None:
            self._sets[self._active], self._sets[name] = tensors, {}
        self._active = name
