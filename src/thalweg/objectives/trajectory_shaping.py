"""Reward-aware trajectory shaping, RATS (2026, arXiv:2604.14910): a few-step student climbs a reward and is
held to a teacher's trajectory for as long as the teacher's sample is better.

    L = s max(0, m - r(x0)) + α sg[g] 1/N Σ_h <(x_h - x_h^T)²>,      g = sigmoid((r(x0^T) - r(x0)) / τ)

The teacher, an average of the student, starts from the same noise and takes `substeps` steps for each of the
student's, so that both pass the same noise levels. The paper's formulas were not available: this is our
reading of its text. Shapes: B rows, ... latent axes.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import CURRENT, Unit, VelocityField
from thalweg.objectives.pathwise_rows import levels_of, paths_of

Gate = Literal["sigmoid", "relu", "open"]
GATES: Mapping[Gate, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "open": torch.ones_like,
}
"""How much the teacher pulls, by how much better its sample is in units of τ."""


class TrajectoryShaping(Part):
    """One term a sample."""

    kind: Literal["trajectory_shaping"] = "trajectory_shaping"
    reward_scale: NonNegativeFloat = 1.0
    """s; 0 leaves plain distillation of the trajectory."""
    margin: float | None = None
    """m: a sample worth as much climbs no further; None climbs without end, L = -s r."""
    pull_weight: PositiveFloat
    """α; the paper calls it sensitive, so there is no default."""
    gate: Gate = "sigmoid"
    temperature: PositiveFloat = 1.0
    """τ, in rewards."""
    substeps: int = Field(default=4, ge=1)
    """Steps of the teacher for each of the student's."""
    num_steps: int | None = Field(default=None, ge=1)
    """K: the way is cut before its last K steps, so that they alone carry the gradient of the reward and what
    is before them follows the teacher; None for all.
    """
    recompute: bool = True
    """As in the route last_steps."""
    teacher: str = "teacher"
    """Named weights that shape, an average of the policy."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.teacher,)

    @property
    def reads_reward(self) -> bool:
        return True

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        way = levels_of(forest).expand(len(forest.leaves), -1)
        return paths_of(forest, advantages, [forest.paths[:, :1]], [way])

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        return steps, {self.teacher: steps * self.substeps, CURRENT: steps if self.recompute else 0}

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        shown = self.shown(field, rows)
        with torch.no_grad():
            better = field.reward(shown[-1])
        x, misses = rows.states[:, 0], list[Tensor]()
        for i, there in enumerate(shown):
            sigma, sigma_next = rows.sigmas[:, i : i + 2].unbind(1)
            if i + (self.num_steps or 0) == len(shown):
                x = x.detach()
            velocity = field.velocity(x, sigma, recompute=self.recompute)
            x = field.as_stored(x + over_latents(sigma_next - sigma, x) * velocity)
            misses.append((x - there).square().flatten(1).mean(1))
        reward = field.reward(x)
        gate = GATES[self.gate]((better - reward.detach()) / self.temperature)
        missed = torch.stack(misses).mean(0).to(reward)
        climb = -reward if self.margin is None else (self.margin - reward).relu()
        terms = self.reward_scale * climb + self.pull_weight * gate * missed
        report = {"path_reward": reward.detach(), "gate": gate, "trajectory_error": missed.detach()}
        return terms * rows.weight.to(terms), report

    def shown(self, field: VelocityField, rows: Paths) -> list[Float[Tensor, "B ..."]]:
        """The teacher's states at the student's levels after the first."""
        x, states = rows.states[:, 0], list[Tensor]()
        for i in range(rows.sigmas.shape[1] - 1):
            sigma, sigma_next = rows.sigmas[:, i : i + 2].unbind(1)
            for part in range(self.substeps):
                at = sigma + (sigma_next - sigma) * part / self.substeps
                stride = over_latents((sigma_next - sigma) / self.substeps, x)
                x = x + stride * field.velocity_of(self.teacher, x, at)
            states.append(x)
        return states
