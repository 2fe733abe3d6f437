"""One optimizer step: gradients of all processes added, held to a norm, and refused where they are not
finite.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from thalweg.core.part import Part
from thalweg.core.processes import Processes
from thalweg.models.shards import local, whole
from thalweg.models.weights import NamedWeights


class Optim(Part):
    """The `optim` section: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and how a rollout becomes
    updates.
    """

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; None leaves them."""
    warmup_updates: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises linearly."""
    updates_per_iteration: PositiveInt = 1
    """Into how many updates the samples of an iteration are split."""
    micro_batch: PositiveInt = 64
    """Network passes with gradient at a time; changes memory and speed, and results by rounding only."""


def make_optimizer(weights: NamedWeights, optim: Optim) -> torch.optim.AdamW:
    """Steps whichever set of weights is in use."""
    return torch.optim.AdamW(
        weights.parameters.values(),
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.epsilon,
        weight_decay=optim.weight_decay,
    )


def update(
    weights: NamedWeights, optimizer: torch.optim.Optimizer, optim: Optim, processes: Processes, updates: int
) -> tuple[float, bool]:
    """Step and clear the gradients: (gradient norm before clipping, whether the step was taken).

    `updates` steps were taken before. A norm that is not finite leaves weights and optimizer as they are.
    """
    processes.meet()
    parameters = list(weights.parameters.values())
    for parameter in parameters:
        if parameter.grad is None:  # a process without rows must still add its nothing
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if processes.turns is None:
        processes.add(gradients, of_parts=True)
    else:
        for gradient in gradients:
            local(gradient).mul_(processes.count)  # FSDP2 has averaged them
    limit = torch.inf if optim.max_grad_norm is None else optim.max_grad_norm
    norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, limit)))
    finite = norm == norm and norm != torch.inf
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * min(1.0, (updates + 1) / (optim.warmup_updates + 1))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, finite
