"""Gradients scaled on their way back through an input of a module: OmniNFT's layer-wise gradient surgery
(2026, arXiv:2605.12480; zghhui/OmniNFT, `CrossAttentionGradBalancer`).

    k -> sg(k) + s (k - sg(k)):      what the module computes stays to the bit,      dL/dk = s (dL/dk)'

Outputs do not change because nothing is computed forwards: s acts on the gradient alone. A pass that is
computed again for the sake of memory is differentiated once, so there too s acts once.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.core.errors import UserError
from thalweg.core.names import nearest
from thalweg.models.diffusers.model import GradientScale
from thalweg.models.diffusers.taps import tapped


def scale_gradients(networks: Mapping[str, nn.Module], scales: Sequence[GradientScale]) -> int:
    """Let the scales act in every pass with gradients from now on; returns at how many inputs they do. Comes
    after the adapters, which stand in the place of the layers they adapt.
    """
    taken: dict[tuple[str, str], int] = {}
    for number, scale in enumerate(scales):
        place = f"model.gradient_scales.{number}"
        for name, module in tapped(networks, scale.modules, scale.blocks, place).items():
            if (name, scale.input) in taken:
                raise UserError(
                    f"{place}: '{scale.input}' of {name} is scaled by model.gradient_scales."
                    f"{taken[name, scale.input]} already; give blocks that do not overlap"
                )
            taken[name, scale.input] = number
            hook = _scaling(_position(module, scale, place), scale, place)
            module.register_forward_pre_hook(hook, with_kwargs=True)
    return len(taken)


def _position(module: nn.Module, scale: GradientScale, place: str) -> int:
    """Where the argument stands among those of the module's forward."""
    known = [name for name in signature(type(module).forward).parameters if name not in ("self", "kwargs")]
    if scale.input not in known:
        raise UserError(
            f"{place}.input='{scale.input}': {type(module).__name__} takes no such argument"
            f"{nearest(scale.input, known)}"
        )
    return known.index(scale.input)


def _scaling(position: int, scale: GradientScale, place: str) -> Callable[..., Any]:
    def scaled(x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise UserError(
                f"{place}.input='{scale.input}': the pipeline does not give it to '{scale.modules}'; name an "
                "argument that it gives"
            )
        return _Scaled.apply(x, scale.scale) if x.requires_grad else x  # type: ignore[no-any-return]

    def hook(
        module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if position < len(args):
            return (*args[:position], scaled(args[position]), *args[position + 1 :]), options
        return args, {**options, scale.input: scaled(options.get(scale.input))}

    return hook


class _Scaled(torch.autograd.Function):
    """Identity, whose gradient is s times what arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return ctx.scale * slopes[0], None
