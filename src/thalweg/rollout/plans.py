"""Plans: which step of a rollout is drawn from the kernel, which is trained, where trajectories fork.

A plan answers with a layout (`core.forest`) for one root, that is for one initial noise of one prompt. The
last step is always deterministic and never trained: there the noise of a kernel is either zero, and has no
density, or stays visible in the sample.

N denoising steps; `leaves` is how many samples one root shall end in.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, SerializeAsAny, model_validator

from thalweg.core.forest import Child, Layout
from thalweg.core.noise import Address
from thalweg.core.part import OWN_PART, Part

ODE = Child(stochastic=False)
SDE = Child(stochastic=True, trained=True)
PROBE = -1
"""Role of the states on a probe's way."""


@runtime_checkable
class PlanContract(Protocol):
    """What a rollout asks of a plan."""

    @property
    def stochastic(self) -> bool:
        """Whether some step is drawn from the kernel."""
        ...

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        """What grows from one root. Random choices come from `draw`, which differs by iteration, and by
        prompt where the plan has a field `per_prompt` that is set.
        """
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


class Sliding(Part):
    """Fields only, shared by the plans that train a window of steps: where it lies in an iteration."""

    start: int = Field(default=0, ge=0)
    """l: the first window's first step; 0 is the noisiest."""
    move: Literal["fixed", "progressive", "random", "early"] = "progressive"
    """Stay at `start`; go on by `stride` every `iterations_per_position`; or draw l anew each iteration: all
    alike, or early ones more often, Pr[l] ~ `early_share`^l (TreeGRPO, arXiv:2512.08153).
    """
    stride: int = Field(default=1, ge=1)
    iterations_per_position: int = Field(default=25, ge=1)
    """tau: iterations before the window moves on."""
    position_decay: float = Field(default=0.0, ge=0)
    """Less time on later windows: tau(l) = ceil(tau exp(-position_decay max(l - decay_from, 0))) (MixGRPO,
    "exp_decay": 0.1 from 13).
    """
    decay_from: int = Field(default=0, ge=0)
    positions: int | None = Field(default=None, ge=1)
    """How many first steps are visited, from `start` on, before the window returns to `start`; None: all."""
    returns: bool = True
    """After the last position begin again; or stay there."""
    early_share: float = Field(default=0.5, gt=0, lt=1)
    per_prompt: bool = False
    """Draw l for each prompt by itself (Flash-GRPO, arXiv:2605.15980); the samples of a prompt share it."""

    @model_validator(mode="after")
    def _drawn(self) -> "Sliding":
        if self.per_prompt and self.move not in ("random", "early"):
            raise ValueError(
                f"per_prompt needs a window that is drawn, and move='{self.move}' is not; give move=random"
            )
        return self


def first_step(plan: Sliding, size: int, num_steps: int, draw: Address) -> int:
    """l of a window of `size` steps at the iteration of `draw`."""
    last = num_steps - 1 - size
    if plan.start > last:
        raise ValueError(
            f"rollout.plan: a window of size={size} from start={plan.start} reaches past step "
            f"{num_steps - 2}, the last one that can be trained of rollout.steps={num_steps}; "
            "make it smaller"
        )
    starts = list(range(plan.start, last + 1, plan.stride))[: plan.positions]
    if plan.move == "fixed":
        return plan.start
    if plan.move == "random":
        return starts[int(draw.permutation(len(starts))[0])]
    if plan.move == "early":
        shares = torch.tensor([plan.early_share**i for i in range(len(starts))], dtype=torch.float64)
        bounds = (shares / shares.sum()).cumsum(0)
        return starts[min(int((bounds <= float(draw.uniform((1,)))).sum()), len(starts) - 1)]
    stays = [
        math.ceil(plan.iterations_per_position * math.exp(-plan.position_decay * max(l - plan.decay_from, 0)))
        for l in starts  # noqa: E741  (the paper's l)
    ]
    at = draw.iteration % sum(stays) if plan.returns else min(draw.iteration, sum(stays) - 1)
    for l, stay in zip(starts, stays, strict=True):  # noqa: E741
        if at < stay:
            return l
        at -= stay
    raise AssertionError("an iteration lies in one of the positions")


class Window(Sliding):
    """A window of drawn and trained steps, deterministic outside (MixGRPO, Li et al. 2025, arXiv:2507.21802).

    All samples of an iteration share the window. Where a root ends in several leaves they share the
    deterministic steps before it, which are then computed once.
    """

    kind: Literal["window"] = "window"
    size: int = Field(ge=1)
    """w: how many steps are trained."""

    @property
    def stochastic(self) -> bool:
        return True

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        start = first_step(self, self.size, num_steps, draw)
        return _window(num_steps, leaves, start, start + self.size)


class Tree(Sliding):
    """A tree: at fork steps every node of the frontier gets several drawn children (TreeGRPO,
    arXiv:2512.08153; BranchGRPO, arXiv:2509.06040; Dynamic-TreeRPO, arXiv:2509.23352).

    Steps are drawn and trained inside a window that may slide, deterministic outside; fork steps count from
    its start. A factor of 1 gives chains.
    """

    kind: Literal["tree"] = "tree"
    branching: int = Field(ge=1)
    """K: children of a node at a fork."""
    forks: tuple[int, ...] | None = None
    """Steps of the window at which the tree forks; None: at every one."""
    size: int | None = Field(default=None, ge=1)
    """w: how many steps are drawn and trained; None: all but the last of the rollout."""
    drawn: Literal["all", "forks"] = "all"
    """Which steps of the window are drawn and trained: every one, or only those with forks."""
    drawn_first: int = Field(default=0, ge=0)
    """With drawn=forks: the first steps of the window that are drawn and trained besides (BranchGRPO's
    "Branch-Mix": 4, which its code leaves at the first steps).
    """
    fork_spread: PositiveFloat = 1.0
    """Factor on the standard deviation of a step that forks, to set siblings apart (BranchGRPO: 4). Differs
    from its code: the density has it too, where the code scores the wider draw under the narrow density.
    """
    noise_growth: float = Field(default=0.0, ge=0)
    """Noise levels grow with depth: the factor is 1 + noise_growth h / (H-1) at fork h of H (our reading of
    Dynamic-TreeRPO, whose formula is not public).
    """

    @model_validator(mode="after")
    def _drawn_once(self) -> "Tree":
        if self.drawn_first and self.drawn == "all":
            raise ValueError(
                f"drawn_first={self.drawn_first}: drawn=all draws every step already; set drawn=forks"
            )
        return self

    @property
    def stochastic(self) -> bool:
        return True

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        size = num_steps - 1 if self.size is None else self.size
        start = first_step(self, size, num_steps, draw)
        forks = list(range(size)) if self.forks is None else sorted(set(self.forks))
        if not forks or forks[0] < 0 or forks[-1] >= size:
            raise ValueError(
                f"rollout.plan.forks={forks}: fork steps lie in the window, 0 .. {size - 1}; move them there"
            )
        grown = self.branching ** len(forks)
        if grown != leaves:
            raise ValueError(
                f"rollout.plan: a tree with branching={self.branching} at {len(forks)} steps ends in {grown} "
                f"samples, and group_size / seed_groups is {leaves}; make them equal"
            )
        steps: list[tuple[Child, ...]] = []
        for i in range(num_steps):
            at = i - start
            depth = sum(fork <= at for fork in forks) - 1
            factor = 1 + self.noise_growth * max(depth, 0) / max(len(forks) - 1, 1)
            drawn = 0 <= at < size and (self.drawn == "all" or at in forks or at < self.drawn_first)
            if not drawn:
                steps.append((ODE,))
            elif at in forks:
                child = Child(stochastic=True, trained=True, noise=factor, spread=self.fork_spread)
                steps.append((child,) * self.branching)
            else:
                steps.append((Child(stochastic=True, trained=True, noise=factor),))
        return tuple({0: children} for children in steps)


class Candidates(Part):
    """Several drawn candidates for every next state; all are judged as they are and trained on, one goes on
    (Step-GRPO, arXiv:2605.25661). Needs a reward of noisy states.

    Our reading of which one goes on: a random one. Candidates are independent draws, so the first is one.
    """

    kind: Literal["candidates"] = "candidates"
    num_candidates: int = Field(ge=1)
    """K: draws from each state."""

    @property
    def stochastic(self) -> bool:
        return True

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        if leaves != 1:
            raise ValueError(
                f"rollout: candidates end where they are judged, so a root ends in one sample, not {leaves}; "
                "leave out seed_groups"
            )
        judged = Child(stochastic=True, trained=True, role=1)
        step = {0: (SDE, *(judged,) * (self.num_candidates - 1)), 1: ()}
        return ((step,) * (num_steps - 1)) + ({0: (ODE,), 1: ()},)


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
        return _branched(num_steps, dict.fromkeys(steps, leaves // self.num_branch_steps))


def _branched(num_steps: int, branches: Mapping[int, int]) -> Layout:
    """A deterministic trunk to the last branch step, which puts out so many samples at each."""
    last = max(branches)
    layout: list[dict[int, tuple[Child, ...]]] = []
    for i in range(num_steps):
        children = (Child(stochastic=True, trained=True, role=1),) * branches.get(i, 0)
        trunk = () if i > last else children + ((ODE,) if i < last else ())
        layout.append({0: trunk, 1: (Child(stochastic=False, role=1),)})
    return tuple(layout)


class BranchBudget(Part):
    """As `branch`, with a fixed number of samples from each step: more where the reward is decided (reward
    score matching, arXiv:2604.17415; jaylee2000/rsm).
    """

    kind: Literal["branch_budget"] = "branch_budget"
    branches: tuple[NonNegativeInt, ...]
    """Samples that leave the trunk at each step, from noise on; later steps have none. The authors: 6, 6, 8,
    10, 0, 0, 0, 0, 0, 6 of 10 steps.
    """

    @property
    def stochastic(self) -> bool:
        return True

    def layout(self, num_steps: int, leaves: int, draw: Address) -> Layout:
        if sum(self.branches) != leaves or leaves == 0:
            raise ValueError(
                f"rollout.plan.branches={list(self.branches)} adds up to {sum(self.branches)}, but a seed "
                f"group has {leaves} samples (group_size / seed_groups); make them equal"
            )
        if any(self.branches[num_steps - 1 :]):
            raise ValueError(
                f"rollout.plan.branches={list(self.branches)}: only the first {num_steps - 1} of "
                f"rollout.steps={num_steps} steps can be trained; give 0 after them"
            )
        return _branched(num_steps, {i: count for i, count in enumerate(self.branches) if count})


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


def first_drawn(layout: Layout) -> int:
    """The first step at which some child is drawn."""
    return _drawn(layout)[0]


def last_drawn(layout: Layout) -> int:
    """The last step at which some child is drawn."""
    return _drawn(layout)[-1]


def _drawn(layout: Layout) -> list[int]:
    return [i for i, roles in enumerate(layout) if any(c.stochastic for row in roles.values() for c in row)]


def only_trained(layout: Layout, steps: Collection[int]) -> Layout:
    """The layout with no other step trained than these."""
    return tuple(
        {
            role: tuple(replace(child, trained=child.trained and i in steps) for child in children)
            for role, children in roles.items()
        }
        for i, roles in enumerate(layout)
    )


def with_probes(layout: Layout) -> Layout:
    """The layout and, from every state that starts or ends a drawn step, a deterministic way to the end,
    whose score tells what the state is worth (DenseGRPO, arXiv:2601.20218). Where only deterministic steps
    follow, the sample itself is that way.
    """
    first, last = first_drawn(layout), last_drawn(layout)
    probe = Child(stochastic=False, role=PROBE, probe=True)
    return tuple(
        {
            role: (*children, probe) if first <= i <= last and children else children
            for role, children in roles.items()
        }
        | {PROBE: (probe,)}
        for i, roles in enumerate(layout)
    )


Plan = Annotated[
    SerializeAsAny[
        Annotated[
            AllSteps | Window | Tree | Branch | BranchBudget | Candidates | Deterministic,
            Field(discriminator="kind"),
        ]
    ],
    OWN_PART,
]
