"""The `rollout` section of a recipe: how many samples, over which noise levels, with which randomness."""

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from thalweg.core.forest import Layout, count_passes
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.flow import Euler, Heun, Kernel, Schedule, Shifted, Solver
from thalweg.models.weights import POLICY
from thalweg.rollout.plans import Plan


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
    weights: str = POLICY
    """The named weights that act."""
    micro_batch: int = Field(default=64, ge=1)
    """Samples in one network pass; changes memory and speed, and results by rounding only."""

    @model_validator(mode="after")
    def _consistent(self) -> "Rollout":
        if self.group_size % self.num_roots:
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
        self.layout(0, 0)
        return self

    @property
    def num_roots(self) -> int:
        """Initial noises of one prompt."""
        return self.seed_groups or self.group_size

    def sigmas(self) -> Float[Tensor, " M"]:
        """Noise levels at which the network is called, and the final 0."""
        return self.solver.grid(self.schedule.sigmas(self.steps))

    def layout(self, seed: int, iteration: int) -> Layout:
        """What grows from each root in an iteration."""
        steps = len(self.sigmas()) - 1
        return self.plan.layout(
            steps, self.group_size // self.num_roots, Address(seed, "selection", iteration)
        )

    def passes_per_prompt(self, seed: int, iteration: int) -> tuple[int, int]:
        """(network passes, trained edges) of one prompt's samples in an iteration."""
        passes, trained, _ = count_passes(self.layout(seed, iteration))
        return passes * self.num_roots, trained * self.num_roots
