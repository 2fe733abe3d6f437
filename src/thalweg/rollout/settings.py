"""The `rollout` section of a recipe: how many samples, over which noise levels, with which randomness."""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Layout, count_passes
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.flow import DynamicShift, Euler, Heun, Kernel, Schedule, Shifted, Solver
from thalweg.models.weights import POLICY
from thalweg.rollout.attention import Attention
from thalweg.rollout.explore import Explore
from thalweg.rollout.finish import Finish
from thalweg.rollout.guidance import Guidance
from thalweg.rollout.perturbation import Perturbation
from thalweg.rollout.plans import Plan, last_drawn, only_trained, with_probes

Given = Literal["right", "spoiled"]


class Rollout(Part):
    """How samples are made."""

    plan: Plan
    group_size: int = Field(ge=1)
    """G: samples of one prompt in an iteration."""
    seed_groups: int | None = Field(default=None, ge=1)
    """How many initial noises the samples of a prompt share; None gives each sample its own, 1 one for
    all.
    """
    steps: int = Field(ge=1)
    """N: denoising steps."""
    schedule: Schedule = Shifted()
    kernel: Kernel | None = None
    """The density that stochastic steps are drawn from; none for a deterministic plan."""
    solver: Solver = Euler()
    """What takes the deterministic steps."""
    tail: float | None = Field(default=None, gt=0, le=1)
    """Shorten what follows the last drawn step: after it, N' = max(int(tail (N - L)), 2) - 1 steps for a last
    drawn step L (MixGRPO-Flash, arXiv:2507.21802); None leaves the schedule.
    """
    probes: bool = False
    """Follow every state of a drawn step to its end without noise, to score what it is worth (DenseGRPO)."""
    guidance: Guidance | None = None
    """Steer drawn steps by the gradient of a reward of noisy states (Euphonium)."""
    perturbation: Perturbation | None = None
    """Sample under varied conditions; training sees the original one (E2PO)."""
    explore: Explore | None = None
    """Choose the initial noises of an iteration among many by cheap samples (Sol-RL)."""
    attention: Attention | None = None
    """Note down where the network looks while samples are made, for credit 'routed' with `attended`."""
    given: tuple[Given, ...] = ()
    """Samples of each prompt that are given and not drawn, the first ones of its group: pictures by the
    embedded world that are right, or the same ones spoiled in one thing. They cost no pass.
    """
    weights: str = POLICY
    """The named weights that act."""
    finish: Finish | None = None
    """Let other weights take the last steps; steps that are drawn stay with `weights`."""
    micro_batch: int = Field(default=64, ge=1)
    """Samples in one network pass; changes memory and speed, and results by rounding only."""

    @model_validator(mode="after")
    def _consistent(self) -> "Rollout":
        if len(self.given) > self.group_size:
            raise ValueError(f"given={list(self.given)}: more than group_size={self.group_size}; give fewer")
        if self.given and (self.plan.stochastic or self.explore is not None):
            raise ValueError(
                "given samples have no path and no noise to choose; use the plan deterministic, no explore"
            )
        if self.num_drawn % max(self.num_roots, 1):
            raise ValueError(
                f"seed_groups={self.num_roots} does not divide group_size={self.group_size}; change "
                "one of them"
            )
        if self.plan.stochastic and self.kernel is None:
            raise ValueError(
                f"kernel is missing: the plan '{self.plan.kind}' draws steps; give one, such as "
                "kernel.kind=flow_sde"
            )
        if not self.plan.stochastic and self.kernel is not None:
            raise ValueError(
                f"kernel '{self.kernel.kind}' would never act: the plan '{self.plan.kind}' draws no "
                "step; leave it out"
            )
        if self.plan.stochastic and isinstance(self.solver, Heun):
            raise ValueError(
                "solver 'heun' takes two calls a step, which a plan that draws steps cannot split; "
                "use euler or dpm_solver"
            )
        if self.tail is not None and (not self.plan.stochastic or self._per_prompt):
            raise ValueError(
                "tail shortens what follows the last drawn step, one for all prompts; give a plan that draws "
                "steps, without per_prompt, or leave tail out"
            )
        if self.guidance is not None and not self.plan.stochastic:
            raise ValueError(
                f"guidance steers drawn steps, and the plan '{self.plan.kind}' draws none; leave it out"
            )
        if self.guidance is not None and max(self.guidance.steps or (0,)) > self.steps - 2:
            raise ValueError(
                f"guidance.steps={list(self.guidance.steps or ())}: drawn steps are 0 .. {self.steps - 2} of "
                f"steps={self.steps}; leave the others out"
            )
        if self.finish is not None and self.finish.steps >= self.steps:
            raise ValueError(
                f"finish.steps={self.finish.steps}: of steps={self.steps} the first ones stay with weights "
                f"'{self.weights}'; give fewer"
            )
        if self.probes and not self.plan.stochastic:
            raise ValueError(
                f"probes score the states of drawn steps, and the plan '{self.plan.kind}' draws none; leave "
                "them out"
            )
        if self.explore is not None and self.explore.pool < self.num_roots:
            raise ValueError(
                f"explore.pool={self.explore.pool}: fewer than the {self.num_roots} initial noises that are "
                "chosen from it; give more"
            )
        if self.finish is not None and self.plan.stochastic:
            drawn = last_drawn(self.layout(0, 0))
            if self.weights_at(drawn, len(self.sigmas()) - 1) != self.weights:
                raise ValueError(
                    f"finish.steps={self.finish.steps} reach step {drawn}, which is drawn by weights "
                    f"'{self.weights}'; give fewer"
                )
        self.layout(0, 0)
        return self

    def weights_at(self, step: int, num_steps: int) -> str:
        """The named weights that act at a step of so many."""
        if self.finish is None or step < num_steps - self.finish.steps:
            return self.weights
        return self.finish.weights

    def resized(self, share: float) -> "Rollout":
        """The rollout of samples whose latents are `share` times as many as those of the model's own size."""
        if share == 1 or not isinstance(self.schedule, DynamicShift):
            return self
        return self.model_copy(update={"schedule": self.schedule.resized(share)})

    @property
    def acting(self) -> tuple[str, ...]:
        """The named weights that take a step."""
        late = () if self.finish is None or self.finish.weights == self.weights else (self.finish.weights,)
        return (self.weights, *late)

    @property
    def num_roots(self) -> int:
        """Initial noises of one prompt."""
        return self.seed_groups or self.num_drawn

    @property
    def num_drawn(self) -> int:
        """Samples of one prompt that the model makes."""
        return self.group_size - len(self.given)

    @property
    def num_starts(self) -> int:
        """Initial noises and given samples of one prompt: what is shared out over processes."""
        return self.num_roots + len(self.given)

    @property
    def _per_prompt(self) -> bool:
        return bool(getattr(self.plan, "per_prompt", False))

    def sigmas(self, seed: int = 0, iteration: int = 0) -> Float[Tensor, " M"]:
        """Noise levels at which the network is called, and the final 0."""
        if self.tail is None:
            return self.solver.grid(self.schedule.sigmas(self.steps))
        last = last_drawn(self._planned(seed, iteration, 0))
        points = max(int((self.steps - last) * self.tail), 2)
        u = torch.linspace(1 - (last + 1) / self.steps, 0, points, dtype=torch.float64)[1:]
        return torch.cat([self.schedule.sigmas(self.steps)[: last + 2], self.schedule.warp(u).float()])

    def layout(self, seed: int, iteration: int, prompt_slot: int = 0) -> Layout:
        """What grows from each root of a prompt in an iteration."""
        layout = self._planned(seed, iteration, prompt_slot)
        if self.tail is not None:
            steps = len(self.sigmas(seed, iteration)) - 1
            head = last_drawn(layout) + 1
            layout = (*layout[:head], *layout[-1:] * (steps - head))
        return with_probes(layout) if self.probes else layout

    def trained_steps(self, seed: int, iteration: int) -> list[int]:
        """Which denoising steps are trained in an iteration."""
        layout = self.layout(seed, iteration)
        return [i for i, roles in enumerate(layout) if any(c.trained for row in roles.values() for c in row)]

    def passes(
        self, seed: int, iteration: int, prompts: int, steps: Collection[int] | None = None
    ) -> tuple[int, int]:
        """(network passes, trained edges, of `steps` alone where they are given) of an iteration with that
        many prompts; what exploring takes is not in it.
        """
        slots = range(prompts) if self._per_prompt else (0,)
        layouts = [self.layout(seed, iteration, slot) for slot in slots]
        if steps is not None:
            layouts = [only_trained(layout, steps) for layout in layouts]
        counts = [count_passes(layout) for layout in layouts]
        times = self.num_roots * prompts // len(slots)
        return sum(passes for passes, _, _ in counts) * times, sum(n for _, n, _ in counts) * times

    def _planned(self, seed: int, iteration: int, prompt_slot: int) -> Layout:
        steps = self.steps if self.tail is not None else len(self.sigmas()) - 1
        slot = prompt_slot if self._per_prompt else 0
        draw = Address(seed, "selection", iteration, slot)
        return self.plan.layout(steps, self.num_drawn // self.num_roots if self.num_drawn else 1, draw)
