"""Methods of a network that are decorated with `torch.no_grad`, without it.

HiDream's mixture of experts is so outside of training mode: its experts would learn nothing, and the gradient
of all that lies before them would lack their part without a word.
"""

import inspect
from types import MethodType

import torch.utils._contextlib
from torch import nn

WRAPPER = torch.utils._contextlib.__file__
"""Where torch makes a decorator of a context; what it decorates is the function's `__wrapped__`."""


def let_gradients_through(network: nn.Module) -> list[str]:
    """Undecorate the methods of every module; their names. Where gradients are off, they stay off."""
    lifted = []
    for name, module in network.named_modules():
        for method, function in inspect.getmembers(type(module), inspect.isfunction):
            if function.__code__.co_filename == WRAPPER:
                setattr(module, method, MethodType(inspect.unwrap(function), module))
                lifted.append(f"{name}.{method}")
    return lifted
