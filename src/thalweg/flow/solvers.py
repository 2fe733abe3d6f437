"""Deterministic steps of the ODE dx = v dσ, from σ = 1 (noise) down to 0 (data); never trained.

A solver is `step(x, velocity, sigma, sigma_next, memory) -> (x_next, memory)` with one velocity a call,
evaluated at (x, σ). `memory` is None at the start of a chain, afterwards a dict of tensors whose first axis
is B, so a rollout indexes it together with the latents when trajectories branch. Two methods let a rollout
treat all solvers alike:

- `grid(sigmas)`: the noise levels to call at; call i is `step(x, v(x, grid[i]), grid[i], grid[i+1], memory)`;
- `observe(x, velocity, sigma)`: the memory after something else, such as a kernel, took a step at (x, σ).

Shapes: B samples, *L latent axes, M noise levels of a schedule, E of a grid (one call fewer). Results are
float32, or float64 for float64 latents.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from thalweg.core.part import Part
from thalweg.flow.broadcast import PerSample, over_latents, per_sample, working_dtype
from thalweg.flow.conversions import x0_from_velocity

Memory = dict[str, Float[Tensor, "B ..."]] | None
"""What a solver keeps of a chain from one call to the next."""


class Euler(Part):
    """First order: x' = x + (σ'-σ) v."""

    kind: Literal["euler"] = "euler"

    def grid(self, sigmas: Float[Tensor, " M"]) -> Float[Tensor, " E"]:
        """Every level once."""
        return sigmas

    def observe(self, x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample) -> Memory:
        """Nothing is kept."""
        return None

    def step(
        self,
        x: Float[Tensor, "B *L"],
        velocity: Float[Tensor, "B *L"],
        sigma: PerSample,
        sigma_next: PerSample,
        memory: Memory,
    ) -> tuple[Float[Tensor, "B *L"], Memory]:
        """x' and no memory."""
        return x + (over_latents(sigma_next, x) - over_latents(sigma, x)) * velocity, None


class Heun(Part):
    """Second order in two calls a step (the trapezoid rule; Karras et al. 2022, arXiv:2206.00364, Alg. 1):

        x̃ = x + (σ'-σ) v(x, σ),      x' = x + (σ'-σ) (v(x, σ) + v(x̃, σ')) / 2

    The first call goes from σ to σ' and returns x̃ with x, v and σ in memory. The second sits at σ', where
    `grid` repeats it: it takes v(x̃, σ'), returns x' and empties the memory. So memory tells the halves
    apart. No network is evaluated at σ' = 0: `grid` holds 0 once, and that step stays Euler's, as in
    the cited algorithm.
    """

    kind: Literal["heun"] = "heun"

    def grid(self, sigmas: Float[Tensor, " M"]) -> Float[Tensor, " E"]:
        """The first level once and then each level twice, except a final 0."""
        repeated = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
        return repeated[:-1] if sigmas[-1] == 0 else repeated

    def observe(self, x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample) -> Memory:
        """Nothing is kept: the next call opens a step."""
        return None

    def step(
        self,
        x: Float[Tensor, "B *L"],
        velocity: Float[Tensor, "B *L"],
        sigma: PerSample,
        sigma_next: PerSample,
        memory: Memory,
    ) -> tuple[Float[Tensor, "B *L"], Memory]:
        """x̃ and a memory if there was none, else x' and none."""
        x, velocity = x.to(working_dtype(x)), velocity.to(working_dtype(x))
        if memory is None:
            predicted = x + (over_latents(sigma_next, x) - over_latents(sigma, x)) * velocity
            return predicted, {"x": x, "velocity": velocity, "sigma": per_sample(sigma, x)}
        dsigma = over_latents(sigma_next, x) - over_latents(memory["sigma"], x)
        return memory["x"] + dsigma * (memory["velocity"] + velocity) / 2, None


class DPMSolver(Part):
    """DPM-Solver++ 2M, second order with one call a step (Lu et al. 2022, arXiv:2211.01095, Alg. 2).

    With λ = log((1-σ)/σ), h = λ'-λ and h_0 the h of the step before, the multistep midpoint rule on the
    linear path is Euler's step plus a correction by the change of x̂0 since the last call:

        x' = x + (σ'-σ) v + (σ-σ')/σ · h / (2 h_0) · (x̂0 - x̂0_before)

    First order without a memory and at σ' = 0, where h is infinite. A first call at σ = 1 leaves h_0
    infinite, so the correction of the second call is 0, its limit.
    """

    kind: Literal["dpm_solver"] = "dpm_solver"

    def grid(self, sigmas: Float[Tensor, " M"]) -> Float[Tensor, " E"]:
        """Every level once."""
        return sigmas

    def observe(self, x: Float[Tensor, "B *L"], velocity: Float[Tensor, "B *L"], sigma: PerSample) -> Memory:
        """x̂0 and σ of this call."""
        return {"x0": x0_from_velocity(x, velocity, sigma), "sigma": per_sample(sigma, x)}

    def step(
        self,
        x: Float[Tensor, "B *L"],
        velocity: Float[Tensor, "B *L"],
        sigma: PerSample,
        sigma_next: PerSample,
        memory: Memory,
    ) -> tuple[Float[Tensor, "B *L"], Memory]:
        """x' and the memory of this call."""
        sigma, sigma_next = per_sample(sigma, x), per_sample(sigma_next, x)
        x0 = x0_from_velocity(x, velocity, sigma)
        x_next = x + over_latents(sigma_next - sigma, x) * velocity
        if memory is not None:
            h, h_before = _log_snr_gain(sigma, sigma_next), _log_snr_gain(memory["sigma"], sigma)
            correction = torch.where(sigma_next > 0, (sigma - sigma_next) / sigma * h / (2 * h_before), 0)
            x_next = x_next + over_latents(correction, x) * (x0 - memory["x0"])
        return x_next, {"x0": x0, "sigma": sigma}


def _log_snr_gain(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """h = λ' - λ without the difference of two logarithms; infinite if σ = 1 or σ' = 0."""
    return -torch.log1p(-((sigma - sigma_next) / (sigma * (1 - sigma_next))).clamp(max=1))


Solver = Annotated[Euler | Heun | DPMSolver, Field(discriminator="kind")]
