"""Adjoint matching for a deterministic flow (2026, arXiv:2605.06583): the least change of the velocity that
raises the reward of every sample.

    min_u  ∫ c/2 |u|² dσ - r(x0),     v = v_ref + u      =>      L = <(v_θ - v_ref + a / c)²>

a = dr/dx along the trajectory under the current weights, or `lean` under the reference. `num_steps` cuts it:
adjoints and loss at the last steps alone. Not the tilted density: a cost of transport, each initial noise
moves by itself. The paper's text was not available; a quadratic cost and where it is cut are our reading.
Differs from it: a mean over latent elements. Shapes: B rows, ... latent axes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.objectives.adjoint import adjoints, reward_slope
from thalweg.objectives.contract import CURRENT, Unit, VelocityField
from thalweg.objectives.pathwise_rows import levels_of, paths_of
from thalweg.objectives.velocity_regression import Look, regressed, rms, shortened


class AdjointMatchingODE(Part):
    """One term a trajectory."""

    kind: Literal["adjoint_matching_ode"] = "adjoint_matching_ode"
    cost: PositiveFloat
    """c: what moving the velocity costs, in reward; no default, for it has the unit of the reward."""
    num_steps: int | None = Field(default=3, ge=1)
    """How many last steps are trained; None for all."""
    lean: bool = False
    """Follow the adjoint under the reference, not under the current weights."""
    largest_shift: PositiveFloat | None = None
    """As in adjoint_matching."""
    recompute: bool = False
    """As in adjoint_matching."""
    reference: str = "reference"
    """Named weights that are changed as little as can be."""

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
        sigmas, states = levels_of(forest), forest.paths
        first = 0 if self.num_steps is None else len(sigmas) - 1 - self.num_steps
        way = sigmas[first:].expand(len(forest.leaves), -1)
        return paths_of(forest, advantages, [states[:, first:]], [way])

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        count = steps if self.num_steps is None else self.num_steps
        return 2 * count - 1, {self.reference: count, CURRENT: count if self.recompute else 0}

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        reward, slope = reward_slope(field, rows.states[:, -1])
        found = adjoints(field, self.reference if self.lean else CURRENT, rows, slope)
        steps = zip(rows.states[:, :-1].unbind(1), rows.sigmas[:, :-1].unbind(1), found, strict=True)
        looks = [
            Look(x, sigma, shortened(-adjoint / self.cost, self.largest_shift)) for x, sigma, adjoint in steps
        ]
        terms, report = regressed(field, self.reference, looks, self.recompute)
        report |= {"path_reward": reward.cpu(), "adjoint_size": rms(torch.stack(found, 1).flatten(1))}
        return terms * rows.weight.to(terms), report
