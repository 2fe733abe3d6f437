"""Reward score matching of first order (2026, arXiv:2604.17415; jaylee2000/rsm): a few samples' reward
gradients stand in for that of the value, and the velocity is regressed on what they ask for.

    L = <(v_θ - v_ref + b (1-σ)^p g)²>      at n states of each sample, one from each of n equal runs

    final      g = dr/dx0 at the finished sample, once for all its states (the redesign; p = 1)
    one_step   g = dr/dx̂0 at x̂0 = x - σ sg(v_θ), through the latents alone (the baseline; p = 2)

v points to noise, so the target subtracts the slope. Both slopes are biased where the flow bends: the
gradient of the value also knows how x0 answers to x, (1-σ)/D for data N(0, 1). Differs from the code: a root
mean square bound on the shift for its running quantile of norms. Shapes: B rows, n states, ... latent axes.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow import x0_from_velocity
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.adjoint import reward_slope
from thalweg.objectives.contract import CURRENT, Unit, VelocityField
from thalweg.objectives.pathwise_rows import draws, levels_of, paths_of
from thalweg.objectives.velocity_regression import Look, regressed, rms, shortened


class ScoreMatching(Part):
    """One term a sample."""

    kind: Literal["score_matching"] = "score_matching"
    slope: Literal["final", "one_step"] = "final"
    """Where the reward's gradient is taken."""
    strength: PositiveFloat
    """b: how far a unit of slope moves the velocity; it has the unit of 1 / slope, so there is no default."""
    data_power: NonNegativeFloat = 1.0
    """p: how soon the pull grows from noise to data; 0 pulls everywhere alike."""
    num_steps: int = Field(default=4, ge=1)
    """n: states of each sample that are trained; as many as the rollout has steps takes them all."""
    largest_shift: PositiveFloat | None = None
    """As in adjoint_matching."""
    recompute: bool = False
    """As in adjoint_matching."""
    reference: str = "reference"
    """Named weights that the target starts from."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.reference,)

    @property
    def reads_reward(self) -> bool:
        return True

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        sigmas = levels_of(forest)
        runs = torch.arange(len(sigmas) - 1).tensor_split(self.num_steps)
        shares = [address.uniform((self.num_steps,)).tolist() for address in draws(forest, seed, iteration)]
        steps = [[int(run[int(u * len(run))]) for run, u in zip(runs, of, strict=True)] for of in shares]
        rows = paths_of(forest, advantages, [forest.paths], [sigmas.expand(len(forest.leaves), -1)])
        return replace(rows, chosen=torch.tensor(steps).view(len(rows), self.num_steps))

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        again = self.num_steps * (self.recompute + (self.slope == "one_step"))
        return self.num_steps, {self.reference: self.num_steps, CURRENT: again}

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        assert rows.chosen is not None
        every = torch.arange(len(rows))
        points = [(rows.states[every, step], rows.sigmas[every, step]) for step in rows.chosen.T]
        if self.slope == "final":
            found = [reward_slope(field, rows.states[:, -1])] * len(points)
        else:
            found = [
                reward_slope(field, x0_from_velocity(x, field.velocity_of(CURRENT, x, sigma), sigma))
                for x, sigma in points
            ]
        looks = list[Look]()
        for (x, sigma), (_, slope) in zip(points, found, strict=True):
            wanted = -self.strength * over_latents((1 - sigma) ** self.data_power, x) * slope
            looks.append(Look(x, sigma, shortened(wanted, self.largest_shift)))
        terms, report = regressed(field, self.reference, looks, self.recompute)
        rewards, slopes = (torch.stack(values, 1) for values in zip(*found, strict=True))
        report |= {"path_reward": rewards.mean(1).cpu(), "slope_size": rms(slopes.flatten(1))}
        return terms * rows.weight.to(terms), report
