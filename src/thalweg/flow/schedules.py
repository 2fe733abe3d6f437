"""The noise levels a rollout visits: σ_0 = 1 > σ_1 > ... > σ_N = 0, N denoising steps.

`VariancePreserving` starts below 1, at the noisiest state its network knows. Every other schedule bends the
even grid u = 1, 1 - 1/N, ..., 0 by the shift of Stable Diffusion 3 (Esser et al.
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
from thalweg.flow.variance_preserving import sigma_from_alpha_bar


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
    """Tokens of the image sequence at the model's own size: FLUX has (height/16)·(width/16) of them. Samples
    of another size have more, or fewer, in proportion to their latents.
    """
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

    def resized(self, share: float) -> "DynamicShift":
        """The schedule of samples with `share` times as many tokens."""
        return self.model_copy(update={"num_tokens": max(round(self.num_tokens * share), 1)})

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


class VariancePreserving(Part):
    """Whole timesteps t of DDPM's table, as DDIM samplers place them, by their level σ_t; then 0.

        β_t between `beta_start` and `beta_end`,      ᾱ_t = Π (1 - β),      σ_t = √(1-ᾱ_t) / (√ᾱ_t + √(1-ᾱ_t))

    Defaults are Stable Diffusion 1.5's and XL's. Spacings as Table 2 of Lin et al. 2023, arXiv:2305.08891. A
    rollout starts from noise of the size that states have at σ_0. Stock samplers may end at σ of timestep 0
    (`set_alpha_to_one: false`); this schedule always ends at the data.
    """

    kind: Literal["variance_preserving"] = "variance_preserving"
    num_train_timesteps: Annotated[int, Field(ge=2)] = 1000
    """T."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012
    betas: Literal["scaled_linear", "linear"] = "scaled_linear"
    """Whether √β or β lies on the straight line."""
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    """Which timesteps of N steps: down to the first, from the last, or both ends."""
    steps_offset: Annotated[int, Field(ge=0)] = 1
    """Added to timesteps whose spacing is leading."""

    def sigmas(self, num_steps: int) -> Float[Tensor, " {num_steps}+1"]:
        """σ_0 .. σ_N."""
        T = self.num_train_timesteps
        if not 1 <= num_steps <= T:
            raise ValueError(
                f"num_steps={num_steps}: a schedule of {T} timesteps takes 1 to {T} steps; set num_steps so"
            )
        ramp = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)
        if self.spacing == "leading":
            timesteps = (ramp * (T // num_steps) + self.steps_offset).clamp(max=T - 1)
        elif self.spacing == "trailing":
            timesteps = ((ramp + 1) * (T / num_steps)).round() - 1
        else:
            timesteps = (ramp * ((T - 1) / max(num_steps - 1, 1))).round()
        return torch.cat([self._levels()[timesteps.long() + 1], torch.zeros(1).double()]).float()

    def warp(self, u: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """σ at timestep u T - 1, between timesteps by a straight line, float64; 0 at u = 0. Levels of
        `sigmas` stand there where the spacing is trailing.
        """
        levels, place = self._levels(), u * self.num_train_timesteps
        low = place.floor().clamp(max=self.num_train_timesteps - 1)
        below, above = levels[low.long()], levels[low.long() + 1]
        return below + (place - low) * (above - below)

    def _levels(self) -> Float[Tensor, " M"]:
        """0 and σ of every timestep. In float32 like the tables that networks were trained with."""
        root = 0.5 if self.betas == "scaled_linear" else 1.0
        ends = self.beta_start**root, self.beta_end**root
        beta = torch.linspace(*ends, self.num_train_timesteps, dtype=torch.float32) ** (1 / root)
        alpha_bar = torch.cumprod(1 - beta, 0).double()
        return torch.cat([torch.zeros(1).double(), sigma_from_alpha_bar(alpha_bar)])


Schedule = Annotated[
    Uniform | Shifted | DynamicShift | Diffusers | VariancePreserving, Field(discriminator="kind")
]
