"""What a network is fed and what it returns, in the words of a flow: state, noise level, velocity.

A flow network is fed x at time σ·T and returns v = ε - x0. A network trained on DDPM's timesteps is fed
x̄ = x / n(σ) at the timestep t of the same signal-to-noise ratio (`flow/variance_preserving.py`) and returns
noise, v̄ or x0. Its timesteps end at σ_T < 1, the noisiest state it knows: 0.936 for Stable Diffusion 1.5.
Above, it is asked at σ_T with x̄ unchanged, as stock samplers do with pure noise.

T training timesteps. Shapes: B rows, *L latent axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.flow import (
    from_variance_preserving,
    sigma_from_alpha_bar,
    to_variance_preserving,
    velocity_from_noise,
    velocity_from_v_prediction,
    velocity_from_x0,
)

SNAP = 0.01
"""Timesteps: σ in float32 tells them apart to 0.001, so one this close to a whole number is meant as it."""


@dataclass(frozen=True)
class FlowReading:
    """Nothing to convert but the scale of time, and its direction where the scheduler inverts it: Mochi and
    LongCat-Audio count from 0, noise, to 1, data, so their network returns x0 - ε.
    """

    num_train_timesteps: int
    inverted: bool = False

    def timestep(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The time that the network is told."""
        return (1 - sigma if self.inverted else sigma) * self.num_train_timesteps

    def fed(self, x: Float[Tensor, "B *L"], sigma: Float[Tensor, " B"]) -> Float[Tensor, "B *L"]:
        """What the network is fed at the flow's state x."""
        return x

    def velocity(
        self, output: Float[Tensor, "B *L"], x: Float[Tensor, "B *L"], sigma: Float[Tensor, " B"]
    ) -> Float[Tensor, "B *L"]:
        """The flow's velocity at x, from what the network returned."""
        return -output if self.inverted else output


VELOCITIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": velocity_from_noise,
    "v_prediction": velocity_from_v_prediction,
    "sample": velocity_from_x0,
}
"""(x, output, σ) -> velocity, by the name that diffusers has for what a network returns."""


@dataclass(frozen=True)
class DiscreteReading:
    """A variance-preserving network with a table of timesteps."""

    levels: Float[Tensor, " T"]
    """σ of each timestep, rising, float64 on the CPU."""
    prediction: str
    """Which of `VELOCITIES`."""

    def timestep(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Between two timesteps by a straight line in σ."""
        levels, at = self.levels, sigma.double().cpu()
        above = torch.searchsorted(levels, at).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        place = above - 1 + ((at - low) / (high - low)).clamp(0, 1)
        whole = place.round()
        return torch.where((place - whole).abs() < SNAP, whole, place).to(sigma.device, torch.float32)

    def fed(self, x: Float[Tensor, "B *L"], sigma: Float[Tensor, " B"]) -> Float[Tensor, "B *L"]:
        return to_variance_preserving(x, sigma).to(x.dtype)

    def velocity(
        self, output: Float[Tensor, "B *L"], x: Float[Tensor, "B *L"], sigma: Float[Tensor, " B"]
    ) -> Float[Tensor, "B *L"]:
        known = sigma.clamp(max=float(self.levels[-1]))
        here = from_variance_preserving(to_variance_preserving(x, sigma), known)
        return VELOCITIES[self.prediction](here, output, known)


Reading = FlowReading | DiscreteReading


def discrete(alphas_cumprod: Float[Tensor, " T"], prediction: str) -> DiscreteReading:
    """The reading of a network whose timestep t has the signal variance ᾱ_t."""
    return DiscreteReading(sigma_from_alpha_bar(alphas_cumprod.double().cpu()), prediction)
