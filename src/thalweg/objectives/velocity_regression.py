"""Regress the velocity on that of a reference plus a shift that the reward's gradient asks for.

    L = 1/n Σ w <(v_θ(x, σ) - v_ref(x, σ) - shift)²>      over n looks, the points where the two are compared

Adjoint matching, its deterministic form and reward score matching differ in the looks and in the shift.
Shapes: B rows, ... latent axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import VelocityField


@dataclass(frozen=True)
class Look:
    """One point of each row."""

    x: Float[Tensor, "B ..."]
    sigma: Float[Tensor, " B"]
    shift: Float[Tensor, "B ..."]
    weight: Float[Tensor, " B"] | None = None
    """w; None counts all alike."""


def regressed(
    field: VelocityField, reference: str, looks: Sequence[Look], recompute: bool
) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
    """Loss terms of the rows, with gradient, and how far the policy is from the reference."""
    bases = [field.velocity_of(reference, look.x, look.sigma) for look in looks]
    terms, far = list[Tensor](), list[Tensor]()
    for look, base in zip(looks, bases, strict=True):
        velocity = field.velocity(look.x, look.sigma, recompute=recompute)
        error = (velocity - base - look.shift).square().flatten(1).mean(1)
        terms.append((error if look.weight is None else over_latents(look.weight, error) * error).cpu())
        far.append(rms(velocity - base) ** 2)
    return torch.stack(terms).mean(0), {f"distance/{reference}": torch.stack(far).mean(0)}


def shortened(shift: Float[Tensor, "B ..."], largest: float | None) -> Float[Tensor, "B ..."]:
    """The shift of a target, scaled down where its root mean square is above the largest."""
    if largest is None:
        return shift
    size = shift.flatten(1).square().mean(1).sqrt()
    return shift * over_latents((largest / size.clamp(min=1e-30)).clamp(max=1), shift)


def rms(x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Root mean square over latent elements, on the CPU."""
    return x.detach().flatten(1).square().mean(1).sqrt().cpu()
