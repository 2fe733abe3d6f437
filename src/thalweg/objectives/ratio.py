"""What objectives over a stored path share: the transition under today's weights, the clip, the KL.

Shapes: B rows, U units, R rewards, ... latent axes.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from thalweg.core.values import Transitions
from thalweg.flow import Transition

KLKind = Literal["exact", "published", "velocity"]


def transition_of(rows: Transitions, velocity: Float[Tensor, "B ..."]) -> Transition:
    """The stored step as the given velocity makes it."""
    return Transition(rows.x, velocity, rows.sigma, rows.sigma_next, rows.k, rows.std)


def clipped(
    log_ratio: Float[Tensor, " U"], advantages: Float[Tensor, "U R"], clip_range: float
) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"]]:
    """PPO's loss max(-A rho, -A clip(rho, 1-c, 1+c)) added over rewards (Schulman et al. 2017,
    arXiv:1707.06347, Eq. 7), and the share of rewards for which the clip takes the gradient away.
    """
    ratio = log_ratio.exp()[:, None]
    free, held = -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return free.maximum(held).sum(1), (held > free).float().mean(1).detach()


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
