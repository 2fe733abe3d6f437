"""Where a network looks: the attention that its tokens are paid by cross-attention modules.

    a_p = sum over queries of mean over heads of softmax(q kᵀ / √d + mask)_p

q, k and mask are those that a module itself gives to `scaled_dot_product_attention`, after its projections,
norms and rotary embedding; it goes on as if nobody had looked. Shapes: B rows, Q queries, K keys.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@contextmanager
def noted(
    networks: Iterable[nn.Module], modules: Iterable[nn.Module], rows: int
) -> Iterator[list[Float[Tensor, "B K"]]]:
    """Inside, what the keys of each module are paid in the networks' first pass, by its last `rows` rows.

    Of a batch that guidance doubles these are the conditional ones, if they come last; later passes are
    guidance's too. Passes made inside of another's hooks are those of other processes (`models.turns`).
    """
    look, paid = _Look(), list[Tensor]()
    depth, passes = 0, 0

    def begin(*_: Any) -> None:
        nonlocal depth, passes
        passes += depth == 0
        depth += 1

    def end(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def enter(*_: Any) -> None:
        if (depth, passes) == (1, 1):
            look.tell = lambda received: paid.append(received[-rows:])

    def leave(*_: Any) -> None:
        look.tell = None

    with ExitStack() as stack, look:
        for network in networks:
            # Before the hook that lets other processes' passes in.
            stack.callback(network.register_forward_pre_hook(begin, prepend=True).remove)
            stack.callback(network.register_forward_hook(end).remove)
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield paid


class _Look(TorchFunctionMode):
    """Tells what keys are paid at every attention, while there is somebody to tell."""

    tell: Callable[[Tensor], None] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is scaled_dot_product_attention and self.tell is not None:
            self.tell(_paid(*args, **options))
        return func(*args, **options)


@torch.no_grad()
def _paid(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B H K D"],
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "B K"]:
    """a, in float32."""
    assert not is_causal and not enable_gqa  # attention across parts is neither
    logits = query.float() @ key.float().transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1).mean(1).sum(1)
