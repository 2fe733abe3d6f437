"""The noise levels a rollout visits: σ_0 = 1 > σ_1 > ... > σ_N = 0, N denoising steps.

Every schedule bends the even grid u = 1, 1 - 1/N, ..., 0 by the shift of Stable Diffusion 3 (Esser et al.
2024, arXiv:2403.03206, Sec. 5.3.2), which spends more steps on noise when S > 1:

    σ = S u / (1 + (S-1) u)

They differ in S and in the grid (M levels). A schedule is worked out in float64 and returned in float32.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from thalweg.core.part import Part


def even_grid(num_steps: int, end: float = 0.0) -> Float[Tensor, " M"]:
    """u from 1 to `end` in `num_steps` equal steps, float64."""
    if num_steps < 1:
        raise ValueError(
            f"num_steps={num_steps}: a schedule needs at least one step; set num_steps to 1 or more"
        )
    return torch.linspace(1, end, num_steps + 1, dtype=torch.float64)


def shift_towards_noise(u: Float[Tensor, " M"], shift: float) -> Float[Tensor, " M"]:
    """S u / (1 + (S-1) u): keeps 0 and 1 where they are."""
    return shift * u / (1 + (shift - 1) * u)


class Uniform(Part):
    """Equal steps in σ."""

    kind: Literal["uniform"] = "uniform"

    def sigmas(self, num_steps: int) -> Float[Tensor, " {num_steps}+1"]:
        """σ_0 .. σ_N."""
        return self.warp(even_grid(num_steps)).float()

    def warp(self, u: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """σ at places of the even grid, float64."""
        return u


class Shifted(Part):
    """The even grid, shifted once: the convention of DanceGRPO and MixGRPO."""

    kind: Literal["shifted"] = "shifted"
    shift: PositiveFloat = 3.0
    """S: 1 is the even grid, 3 is Stable Diffusion 3 and Wan at 480p."""

    def sigmas(self, num_steps: int) -> Float[Tensor, " {num_steps}+1"]:
        """σ_0 .. σ_N."""
        return self.warp(even_grid(num_steps)).float()

    def warp(self, u: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """σ at places of the even grid, float64."""
        return shift_towards_noise(u, self.shift)


class DynamicShift(Part):
    """FLUX: S = e^mu, where mu is linear in the number of image tokens (larger images need more noise).

    Constants from diffusers, `calculate_shift` of the Flux pipeline.
    """

    kind: Literal["dynamic_shift"] = "dynamic_shift"
    num_tokens: PositiveInt
    """Tokens of the image sequence: FLUX has (height/16)·(width/16) of them."""
    base_tokens: PositiveInt = 256
    """Where mu is `base_mu`."""
    max_tokens: PositiveInt = 4096
    """Where mu is `max_mu`; the line goes on beyond."""
    base_mu: float = 0.5
    max_mu: float = 1.15

    @property
    def mu(self) -> float:
        """log S."""
        slope = (self.max_mu - self.base_mu) / (self.max_tokens - self.base_tokens)
        return self.base_mu + slope * (self.num_tokens - self.base_tokens)

    def sigmas(self, num_steps: int) -> Float[Tensor, " {num_steps}+1"]:
        """σ_0 .. σ_N."""
        return self.warp(even_grid(num_steps)).float()

    def warp(self, u: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """σ at places of the even grid, float64."""
        return shift_towards_noise(u, math.exp(self.mu))


class Diffusers(Part):
    """The two shifts of diffusers' `FlowMatchEulerDiscreteScheduler` without dynamic shift.

    Its constructor shifts the training levels 1/T .. 1; `set_timesteps` lays an even grid of N points over
    that shifted range, shifts it again, and appends 0. So the last step falls from nearly nothing to 0, and
    the one before it is long.
    """

    kind: Literal["diffusers"] = "diffusers"
    shift: PositiveFloat = 3.0
    """S, applied twice: 3 is Stable Diffusion 3."""
    num_train_timesteps: Annotated[int, Field(ge=2)] = 1000
    """T: the smallest training level is 1/T."""

    def sigmas(self, num_steps: int) -> Float[Tensor, " {num_steps}+1"]:
        """σ_0 .. σ_N."""
        lowest = shift_towards_noise(torch.tensor([1 / self.num_train_timesteps]).double(), self.shift).item()
        # One step visits only u = 1.
        levels = even_grid(num_steps - 1, lowest) if num_steps > 1 else even_grid(num_steps)[:1]
        return torch.cat([shift_towards_noise(levels, self.shift), levels.new_zeros(1)]).float()

    def warp(self, u: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """σ at places of the even grid, float64. The levels of `sigmas` are not evenly placed at the clean
        end: their last place but one is u = 0 to the training levels, and here 0 is 0.
        """
        return shift_towards_noise(shift_towards_noise(u, self.shift), self.shift)


Schedule = Annotated[Uniform | Shifted | DynamicShift | Diffusers, Field(discriminator="kind")]
