"""What objectives over a stored path share: the transition under today's weights, the clip, the KL.

Shapes: B rows, U units, R rewards, ... latent axes.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Transitions
from thalweg.flow import Transition
from thalweg.flow.broadcast import over_latents

KLKind = Literal["exact", "published", "velocity"]


def transition_of(rows: Transitions, velocity: Float[Tensor, "B ..."]) -> Transition:
    """The stored step as the given velocity makes it."""
    return Transition(rows.x, velocity, rows.sigma, rows.sigma_next, rows.k, rows.std)


def clipped(
    log_ratio: Float[Tensor, " U"],
    advantages: Float[Tensor, "U R"],
    below: float | Float[Tensor, "U R"],
    above: float | Float[Tensor, "U R"] | None = None,
) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"]]:
    """PPO's loss max(-A rho, -A clip(rho, 1-c, 1+c)) added over rewards (Schulman et al. 2017,
    arXiv:1707.06347, Eq. 7), and the share of rewards for which the clip takes the gradient away. `below` and
    `above` are c on either side; without `above` the same.
    """
    logs = log_ratio[:, None].expand_as(advantages)
    ratio = logs.detach().exp()
    low = torch.as_tensor(1 - below, dtype=ratio.dtype)
    high = torch.as_tensor(1 + (below if above is None else above), dtype=ratio.dtype)
    held = -advantages * ratio.minimum(high).maximum(low)
    is_held = held > -advantages * ratio
    # Left out before exp: a held ratio may be infinite, and its gradient times 0 is no number.
    free = -advantages * torch.where(is_held, 0, logs).exp()
    return torch.where(is_held, held, free).sum(1), is_held.float().mean(1)


def masked(
    log_ratio: Float[Tensor, " U"],
    advantages: Float[Tensor, "U R"],
    divergence: Float[Tensor, " U"],
    divergence_range: float,
) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"]]:
    """Flow-DPPO's loss -A rho (arXiv:2606.11025; Tencent-Hunyuan/UniRL), 0 where the divergence has reached
    its range and the update would lead further away, and the share of rewards for which it is 0.
    """
    logs = log_ratio[:, None].expand_as(advantages)
    away = ((logs > 0) & (advantages > 0)) | ((logs < 0) & (advantages < 0))
    dropped = (away & (divergence >= divergence_range)[:, None]).detach()
    # Left out before exp too: a ratio may be infinite, and its gradient times 0 is no number.
    ratio = torch.where(dropped, 0, logs).exp()
    return torch.where(dropped, 0, -advantages * ratio).sum(1), dropped.float().mean(1)


def hinged(
    log_ratio: Float[Tensor, " U"], advantages: Float[Tensor, "U R"], rows: Transitions, clip_range: float
) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"]]:
    """Reward score matching's loss max(0, c |A| - A s² log rho) / (s Δ) added over rewards (arXiv:2604.17415;
    jaylee2000/rsm, "fair clip 2"): linear up to a shift of the mean that is the same for all steps, where it
    ends; and the share of rewards for which it has ended. Δ = sigma - sigma_next.
    """
    variance = (rows.std**2).to(log_ratio)[:, None]
    scale = (rows.std * (rows.sigma - rows.sigma_next)).to(log_ratio)[:, None]
    room = clip_range * advantages.abs() - advantages * variance * log_ratio[:, None]
    return (room.relu() / scale).sum(1), ((room <= 0) & (advantages != 0)).float().mean(1)


RatioKind = Literal["step", "unnormalized", "sum", "guard"]


def _step(scalars: Mapping[str, Tensor], rows: Transitions) -> Tensor:
    return scalars["log_prob"] - rows.old_log_prob


def _unnormalized(scalars: Mapping[str, Tensor], rows: Transitions) -> Tensor:
    return 2 * rows.std**2 * _step(scalars, rows)


def _sum(scalars: Mapping[str, Tensor], rows: Transitions) -> Tensor:
    return rows.x[0].numel() * _step(scalars, rows)


def _guard(scalars: Mapping[str, Tensor], rows: Transitions) -> Tensor:
    return scalars["along_noise"]


LOG_RATIO: Mapping[RatioKind, Callable[[Mapping[str, Tensor], Transitions], Tensor]] = {
    "step": _step,
    "unnormalized": _unnormalized,
    "sum": _sum,
    "guard": _guard,
}
"""Of a step: `step` averages over d latent elements; `sum` is d times that, the true log-ratio;
`unnormalized`
drops 1 / (2 s^2) as Flow-CPS publishes it; `guard` is mean(delta z) with delta = mean - mean_old, without the
negative bias -delta^2 / (2 s^2) and of one scale for all steps (GRPO-Guard, arXiv:2510.22319).
"""


def drift_scalars(rows: Transitions, now: Transition) -> dict[str, Float[Tensor, " B"]]:
    """How far the mean has moved since the rollout, delta = mean - mean_old, averaged over latent elements:
    `along_noise` is delta z with z the drawn noise, `divergence` is KL(old || now) = delta^2 / (2 s^2), and
    `velocity_gap` is delta^2 / J^2 = (v - v_old)^2.
    """
    if rows.old_mean is None:
        raise ValueError("the rollout kept no means; an objective that reads them says so by `keeps_mean`")
    std, J = (over_latents(t, rows.x) for t in (now.std, now.J))
    delta = now.mean - rows.old_mean
    z = (rows.x_next - rows.old_mean) / std
    return {
        "along_noise": (delta * z).flatten(1).mean(1),
        "divergence": (delta / std).square().flatten(1).mean(1) / 2,
        "velocity_gap": (delta / J).square().flatten(1).mean(1),
    }


def _exact(rows: Transitions, now: Transition, reference: Transition) -> Tensor:
    return now.kl(reference)


def _published(rows: Transitions, now: Transition, reference: Transition) -> Tensor:
    return now.kl(reference) * (rows.sigma - rows.sigma_next).to(now.std.device)


def _velocity(rows: Transitions, now: Transition, reference: Transition) -> Tensor:
    return (now.velocity - reference.velocity).pow(2).flatten(1).mean(1)


KL: Mapping[KLKind, Callable[[Transitions, Transition, Transition], Tensor]] = {
    "exact": _exact,
    "published": _published,
    "velocity": _velocity,
}
"""To the reference, a mean over latent elements: `exact` is that of the step, (mean - mean_ref)^2 / (2 s^2);
`published` divides by g^2 in place of s^2 = g^2 (sigma - sigma'), as yifan123/flow_grpo does; `velocity` is
the plain squared difference of velocities.
"""
