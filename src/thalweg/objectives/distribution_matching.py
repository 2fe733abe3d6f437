"""Distribution matching distillation: a few-step student whose samples a teacher and a fake score, learnt
from the samples themselves, find equally likely (DMD; Yin et al. 2024, arXiv:2405.14867), and its form that
keeps diversity, DP-DMD (2026, arXiv:2602.03139; Multimedia-Analytics-Laboratory/dpdmd). Rewards may say which
directions count for more (`guided_targets`).

    x_t = (1-t) x + t ε,    x̂_T = x_t - t v_T,    x̂_F = x_t - t v_F,     x the student's own sample
    g = (x̂_F - x̂_T) / <|x_t - x̂_T|>,        L = 1/2 <(x_θ - sg(x - g))²>
    DP-DMD:  L + β <(v_θ(z, 1) - (z - x_A) / (1 - σ_A))²>,   x_A where the teacher stands after A steps from z

x_θ repeats the last K steps of the sample with a gradient; in DP-DMD all but the first one, which the second
term alone trains, so that what the noise decides is the teacher's. Differs from DMD as dpdmd's code does: x_t
and not x in the divisor. Shapes: B rows, K draws of (t, ε), ... latent axes.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.noise import Address, normals
from thalweg.core.part import Part
from thalweg.core.values import Paths
from thalweg.flow import LinearPath, Schedule, Uniform, x0_from_velocity
from thalweg.flow.broadcast import over_latents
from thalweg.objectives.contract import CURRENT, Unit, VelocityField
from thalweg.objectives.guided_targets import Guide
from thalweg.objectives.pathwise_rows import levels_of, paths_of
from thalweg.objectives.routes import LastSteps
from thalweg.objectives.sigma_draw import Level
from thalweg.objectives.velocity_regression import rms

PATH = LinearPath()
FLOOR = 1e-5
"""Least divisor of the direction."""


class Diversity(Part):
    """The student's first step goes where the teacher's first A steps go."""

    weight: float = Field(default=0.05, gt=0)
    """β."""
    teacher_steps: int = Field(default=30, ge=1)
    """Steps of the teacher's whole way."""
    num_steps: int = Field(default=5, ge=1)
    """A: how many of them it walks; all of them make the first step a regression on its samples."""
    schedule: Schedule = Uniform()

    @model_validator(mode="after")
    def _within(self) -> "Diversity":
        if self.num_steps > self.teacher_steps:
            raise ValueError(
                f"num_steps={self.num_steps}: the teacher takes only {self.teacher_steps} steps; give fewer"
            )
        return self

    def target(self, field: VelocityField, teacher: str, noise: Float[Tensor, "B ..."]) -> Tensor:
        """The mean velocity of the teacher's first steps from the noise."""
        sigmas, x = self.schedule.sigmas(self.teacher_steps).tolist(), noise
        for at, to in pairwise(sigmas[: self.num_steps + 1]):
            x = x + (to - at) * field.velocity_of(teacher, x, torch.full((len(x),), at))
        return (noise - x) / (sigmas[0] - sigmas[self.num_steps])


class DistributionMatching(Part):
    """One term a sample."""

    kind: Literal["distribution_matching"] = "distribution_matching"
    num_steps: int | None = Field(default=None, ge=1)
    """K: last steps that carry the gradient; None for all, or with `diversity` for all but the first."""
    sigma_min: Level = 0.02
    """t is drawn evenly between the two."""
    sigma_max: Level = 0.98
    diversity: Diversity | None = None
    """DP-DMD; None is plain DMD."""
    guide: Guide | None = None
    """GDMD; None takes one direction of each sample as it is."""
    recompute: bool = True
    """As in the route last_steps."""
    teacher: str = "teacher"
    """Named weights of the teacher; its `guidance_scale` is the authors' 3.5."""
    fake: str = "fake"
    """Named weights that learn the student's samples."""

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.teacher, self.fake)

    @property
    def reads_reward(self) -> bool:
        return False

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Paths:
        sigmas, states, leaves = levels_of(forest), forest.paths, forest.leaves
        columns = (leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.sample.tolist())
        owners = list(zip(*columns, strict=True))
        num, shape = self._num_targets, forest.latents.shape[1:]
        u = torch.stack(
            [Address(seed, "sigmas", iteration, p, g, (6, s)).uniform((num,)) for p, g, s in owners]
        )
        drawn = [
            Address(seed, "forward noise", iteration, p, g, (6, s), k)
            for p, g, s in owners
            for k in range(num)
        ]
        noise = normals(drawn, shape).unflatten(0, (-1, num)).to(states.device)
        way = sigmas[-1 - self._count(len(sigmas) - 1) :].expand(len(leaves), -1)
        here = torch.stack([states[:, -way.shape[1]], states[:, 0], states[:, -1]], 1)
        level = self.sigma_min + (self.sigma_max - self.sigma_min) * u
        return paths_of(forest, advantages, [torch.cat([here, noise], 1)], [torch.cat([level, way], 1)])

    def passes(self, steps: int) -> tuple[int, dict[str, int]]:
        walked = 0 if self.diversity is None else self.diversity.num_steps
        count = self._count(steps) + (self.diversity is not None)
        looks = self._num_targets
        return count, {
            self.teacher: looks + walked,
            self.fake: looks,
            CURRENT: count if self.recompute else 0,
        }

    @property
    def _num_targets(self) -> int:
        return 1 if self.guide is None else self.guide.num_targets

    def _count(self, steps: int) -> int:
        return self.num_steps or (steps if self.diversity is None else steps - 1)

    def path_loss(
        self, field: VelocityField, rows: Paths
    ) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
        num = self._num_targets
        start, first, sample = rows.states[:, :3].unbind(1)
        directions = [
            self._direction(field, sample, noise, level)
            for noise, level in zip(rows.states[:, 3:].unbind(1), rows.sigmas[:, :num].unbind(1), strict=True)
        ]
        counts, report = torch.ones(len(rows), num), dict[str, Tensor]()
        if self.guide is not None:
            with torch.no_grad():
                rewards = torch.stack([field.reward(sample - direction) for direction in directions], 1).cpu()
            counts, report = self.guide.counts(rewards), {"target_reward": rewards.mean(1)}
        target = self.diversity.target(field, self.teacher, first) if self.diversity else None

        way = replace(rows, states=start[:, None], sigmas=rows.sigmas[:, num:])
        again = LastSteps(num_steps=None, recompute=self.recompute).follow(field, way).x0
        missed = [(again - (again - d).detach()).square().flatten(1).mean(1).cpu() / 2 for d in directions]
        terms = (torch.stack(missed, 1) * counts).mean(1)
        report["direction"] = torch.stack([rms(direction) for direction in directions], 1).mean(1)
        if self.diversity is not None and target is not None:
            begun = field.velocity(first, torch.ones(len(first)), recompute=self.recompute)
            astray = (begun - target).square().flatten(1).mean(1).cpu()
            terms = terms + self.diversity.weight * astray
            report["first_step_error"] = astray.detach()
        return terms * rows.weight.to(terms), report

    def _direction(
        self,
        field: VelocityField,
        sample: Float[Tensor, "B ..."],
        noise: Float[Tensor, "B ..."],
        level: Float[Tensor, " B"],
    ) -> Float[Tensor, "B ..."]:
        """g: from the sample to where the teacher would rather have it than the fake."""
        x = PATH.corrupt(sample, noise, level)
        real = x0_from_velocity(x, field.velocity_of(self.teacher, x, level), level)
        fake = x0_from_velocity(x, field.velocity_of(self.fake, x, level), level)
        size = (x - real).abs().flatten(1).mean(1).clamp(min=FLOOR)
        return (fake - real) / over_latents(size, x)
