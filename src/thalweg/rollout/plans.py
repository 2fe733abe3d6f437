"""Plans: which step of a rollout is drawn from the kernel, which is trained, where trajectories fork.

A plan answers with a layout (`core.forest`) for one root, that is for one initial noise of one prompt. The
last step is always deterministic and never trained: there the noise of a kernel is either zero, and has no
density, or stays visible in the sample.

N denoising steps; `leaves` is how many samples one root shall end in.
"""

from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field, SerializeAsAny

from thalweg.core.forest import Child, Layout
from thalweg.core.noise import Address
from thalweg.core.part import OWN_PART, Part

ODE = Child(stochastic=False)
SDE = Child(stochastic=True, trained=True)


@runtime_checkable
class PlanContract(Protocol):
    """What a rollout asks of a plan."""

    @property
    def stochastic(self) -> bool:
        """Whether some step is drawn from the kernel."""
        ...

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        """What grows from one root. Random choices come from `draw`, which differs by iteration only."""
        ...


def _window(num_steps: int, leaves: int, start: int, stop: int) -> Layout:
    """Steps start .. stop - 1 drawn and trained, the others deterministic; leaves fork at `start`."""
    steps: list[tuple[Child, ...]] = [(ODE,) if not start <= i < stop else (SDE,) for i in range(num_steps)]
    steps[start] = (SDE,) * leaves
    return tuple({0: children} for children in steps)


class AllSteps(Part):
    """Every step but the last is drawn and trained (Flow-GRPO, Liu et al. 2025, arXiv:2505.05470)."""

    kind: Literal["all_steps"] = "all_steps"

    @property
    def stochastic(self) -> bool:
        return True

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        if num_steps < 2:
            raise ValueError(f"rollout.steps={num_steps}: the last step is never trained, so give 2 or more")
        return _window(num_steps, leaves, 0, num_steps - 1)


class Window(Part):
    """A window of drawn and trained steps, deterministic outside (MixGRPO, Li et al. 2025, arXiv:2507.21802).

    All samples of an iteration share the window. Where a root ends in several leaves they share the
    deterministic steps before it, which are then computed once.
    """

    kind: Literal["window"] = "window"
    size: int = Field(ge=1)
    """w: how many steps are trained."""
    start: int = Field(default=0, ge=0)
    """l: the first window's first step; 0 is the noisiest."""
    move: Literal["fixed", "progressive", "random"] = "progressive"
    """Stay at `start`; go on by `stride` every `iterations_per_position`; or draw l anew each iteration."""
    stride: int = Field(default=1, ge=1)
    iterations_per_position: int = Field(default=25, ge=1)
    """tau: iterations before the window moves on."""
    positions: int | None = Field(default=None, ge=1)
    """How many first steps are visited, from `start` on, before the window returns to `start`; None: all."""

    @property
    def stochastic(self) -> bool:
        return True

    def first_step(self, num_steps: int, draw: Address) -> int:
        """l at the iteration of `draw`."""
        last = num_steps - 1 - self.size
        if self.start > last:
            raise ValueError(
                f"rollout.plan: a window of size={self.size} from start={self.start} reaches past step "
                f"{num_steps - 2}, the last one that can be trained of rollout.steps={num_steps}; "
                "make it smaller"
            )
        starts = list(range(self.start, last + 1, self.stride))[: self.positions]
        if self.move == "fixed":
            return self.start
        if self.move == "random":
            return starts[int(draw.permutation(len(starts))[0])]
        return starts[draw.iteration // self.iterations_per_position % len(starts)]

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        start = self.first_step(num_steps, draw)
        return _window(num_steps, leaves, start, start + self.size)


class Branch(Part):
    """One drawn and trained step a sample, deterministic before and after it, so that the reward is that
    step's own (TempFlow-GRPO, He et al. 2025, arXiv:2508.04324).

    A deterministic trunk runs from the root; at each branch step it puts out several samples. Our reading:
    the paper branches at every step; here `num_branch_steps` of them are drawn anew each iteration, because
    every one costs its own continuations.
    """

    kind: Literal["branch"] = "branch"
    num_branch_steps: int = Field(ge=1)
    """At how many steps the trunk branches in an iteration."""
    last_step: int | None = Field(default=None, ge=0)
    """The last step that may be a branch step; None: the last but one of the rollout."""

    @property
    def stochastic(self) -> bool:
        return True

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        candidates = num_steps - 1 if self.last_step is None else min(self.last_step + 1, num_steps - 1)
        if self.num_branch_steps > candidates:
            raise ValueError(
                f"rollout.plan.num_branch_steps={self.num_branch_steps}: only {candidates} steps may branch; "
                "give fewer, or more rollout.steps"
            )
        if leaves % self.num_branch_steps:
            raise ValueError(
                f"rollout.plan.num_branch_steps={self.num_branch_steps} does not divide the {leaves} "
                "samples of "
                "a seed group (group_size / seed_groups); change one of them"
            )
        # One step from each of equal strata, so that every iteration sees noisy and clean steps alike.
        edges = [i * candidates // self.num_branch_steps for i in range(self.num_branch_steps + 1)]
        shares = draw.uniform((self.num_branch_steps,)).tolist()
        steps = {a + int(u * (b - a)) for a, b, u in zip(edges[:-1], edges[1:], shares, strict=True)}
        children = (Child(stochastic=True, trained=True, role=1),) * (leaves // self.num_branch_steps)
        last = max(steps)
        layout: list[dict[int, tuple[Child, ...]]] = []
        for i in range(num_steps):
            trunk = () if i > last else (children if i in steps else ()) + ((ODE,) if i < last else ())
            layout.append({0: trunk, 1: (Child(stochastic=False, role=1),)})
        return tuple(layout)


class Deterministic(Part):
    """No step is drawn: the sample follows the flow (DiffusionNFT and all that need no path)."""

    kind: Literal["deterministic"] = "deterministic"

    @property
    def stochastic(self) -> bool:
        return False

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        if leaves != 1:
            raise ValueError(
                f"rollout: a deterministic plan gives one sample for each initial noise, not {leaves}; "
                "leave out seed_groups"
            )
        return ({0: (ODE,)},) * num_steps


Plan = Annotated[
    SerializeAsAny[Annotated[AllSteps | Window | Branch | Deterministic, Field(discriminator="kind")]],
    OWN_PART,
]
