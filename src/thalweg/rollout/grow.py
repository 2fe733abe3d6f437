"""Grow a forest: follow the plan's layout from initial noise to finished samples.

All rows at one noise level move together: one network pass for each node that has children, then a step of
the kernel or the solver to each child. Shapes: n rows of a level, ... latent axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thalweg.core.forest import Child, Forest, Layout, Leaves, Level
from thalweg.core.noise import Address, normals
from thalweg.core.values import Condition, Prompt
from thalweg.flow import Memory, Transition
from thalweg.models.contract import Policy
from thalweg.rollout.settings import Rollout

LEAVES_PER_ROOT = 1 << 20
"""Room for sample numbers: root r owns r * LEAVES_PER_ROOT and the numbers after it."""


@dataclass(frozen=True)
class Root:
    """One initial noise of one prompt."""

    prompt_slot: int
    """Which of the iteration's prompts."""
    seed_group: int
    """Which of the prompt's initial noises."""
    number: int
    """Counts the roots of the iteration over all processes."""
    condition: int
    """Row of the prompt among those given to `grow`."""


@dataclass(frozen=True)
class _Node:
    """A row of the frontier: the edge that led to it and the way from its root."""

    root: Root
    child: Child
    path: tuple[int, ...] = ()
    fork_step: int = -1


@torch.no_grad()
def grow(
    policy: Policy,
    prompts: Sequence[Prompt],
    roots: Sequence[Root],
    rollout: Rollout,
    *,
    seed: int,
    iteration: int,
) -> Forest:
    """The forest over `roots`, under the weights that `rollout` names."""

    def to_latent_precision(x: Tensor) -> Tensor:
        # What the network will see is what gets a probability and what is stored.
        return x.to(policy.latent_dtype).float()

    layout, sigmas = rollout.layout(seed, iteration), rollout.sigmas()
    condition = policy.encode(prompts)
    nodes = [_Node(root, Child(stochastic=False)) for root in roots]
    starts = [Address(seed, "initial", iteration, root.prompt_slot, root.seed_group) for root in roots]
    x = to_latent_precision(normals(starts, policy.latent_shape).to(policy.device))
    levels = [_level(layout, 0, sigmas, nodes, torch.full((len(nodes),), -1), x, None)]
    memory: Memory = None
    with policy.weights.use(rollout.weights):
        for step in range(len(layout)):
            velocity = _velocity(policy, x, sigmas[step], condition, _conditions(nodes), rollout.micro_batch)
            nodes, parents = _children(layout, nodes, step)
            x, velocity = x[parents], velocity[parents]
            memory = None if memory is None else {name: kept[parents] for name, kept in memory.items()}
            x_next, memory = rollout.solver.step(
                x, velocity, float(sigmas[step]), float(sigmas[step + 1]), memory
            )
            drawn = [row for row, node in enumerate(nodes) if node.child.stochastic]
            transition = None
            if rollout.kernel is not None and drawn:
                transition = rollout.kernel.transition(x, velocity, sigmas[step], sigmas[step + 1])
                addresses = [_draw(nodes[row], seed, iteration, step) for row in drawn]
                noise = torch.zeros_like(x)
                noise[drawn] = normals(addresses, policy.latent_shape).to(x.device)
                x_next[drawn] = transition.sample(noise)[drawn]
            x = to_latent_precision(x_next)
            levels.append(_level(layout, step + 1, sigmas, nodes, parents, x, transition))
    return Forest(tuple(levels), _leaves(nodes), tuple(prompts), condition, _conditions(nodes))


def _velocity(
    policy: Policy, x: Tensor, sigma: Tensor, condition: Condition, rows: Tensor, micro_batch: int
) -> Tensor:
    if len(x) == 0:
        return x
    chunks = zip(x.split(micro_batch), rows.split(micro_batch), strict=True)
    return torch.cat([policy.velocity(c, sigma.expand(len(c)), condition.index(r)) for c, r in chunks])


def _conditions(nodes: Sequence[_Node]) -> Int64[Tensor, " n"]:
    return torch.tensor([node.root.condition for node in nodes], dtype=torch.int64)


def _draw(node: _Node, seed: int, iteration: int, step: int) -> Address:
    root = node.root
    return Address(seed, "transition", iteration, root.prompt_slot, root.seed_group, node.path, step)


def _children(layout: Layout, nodes: Sequence[_Node], step: int) -> tuple[list[_Node], Int64[Tensor, " n"]]:
    """The next level's nodes, siblings side by side, and the row of each one's parent.

    Only drawn siblings lengthen the path: an only child keeps its parent's, so that a branch factor of 1 is a
    chain.
    """
    grown, parents = [], []
    for row, node in enumerate(nodes):
        children = layout[step][node.child.role]
        forks = sum(child.stochastic for child in children) > 1
        for number, child in enumerate(children):
            path = (*node.path, number) if forks and child.stochastic else node.path
            fork_step = step if forks and child.stochastic else node.fork_step
            grown.append(_Node(node.root, child, path, fork_step))
            parents.append(row)
    return grown, torch.tensor(parents, dtype=torch.int64)


def _level(
    layout: Layout,
    at: int,
    sigmas: Float[Tensor, " M"],
    nodes: Sequence[_Node],
    parents: Int64[Tensor, " n"],
    x: Float[Tensor, "n ..."],
    transition: Transition | None,
) -> Level:
    """The level at noise level `at`, keeping the states that credit or training will read."""
    trained = torch.tensor([node.child.trained for node in nodes], dtype=torch.bool)
    k, std, log_prob = (
        sigmas[at].repeat(len(nodes)),
        torch.zeros(len(nodes)),
        torch.full((len(nodes),), torch.nan),
    )
    if transition is not None:
        drawn = torch.tensor([node.child.stochastic for node in nodes])
        k, std = torch.where(drawn, transition.k.cpu(), k), torch.where(drawn, transition.std.cpu(), std)
        if bool(trained.any()):
            log_prob = torch.where(trained, transition.log_prob(x).cpu(), log_prob)
    is_leaf = at == len(layout)
    starts = [not is_leaf and any(child.trained for child in layout[at][node.child.role]) for node in nodes]
    kept = trained | torch.tensor(starts, dtype=torch.bool) | is_leaf
    row = torch.where(kept, kept.long().cumsum(0) - 1, -1)
    return Level(
        sigma=float(sigmas[at]),
        parent=parents,
        trained=trained,
        k=k,
        std=std,
        log_prob=log_prob,
        latents=x if bool(kept.all()) else x[kept.to(x.device)],
        row=row,
        depth=torch.tensor([len(node.path) for node in nodes], dtype=torch.int64),
    )


def _leaves(nodes: Sequence[_Node]) -> Leaves:
    numbers, seen = [], dict[int, int]()
    for node in nodes:
        index = seen[node.root.number] = seen.get(node.root.number, -1) + 1
        numbers.append(node.root.number * LEAVES_PER_ROOT + index)
    return Leaves(
        prompt_slot=torch.tensor([node.root.prompt_slot for node in nodes], dtype=torch.int64),
        seed_group=torch.tensor([node.root.seed_group for node in nodes], dtype=torch.int64),
        fork_step=torch.tensor([node.fork_step for node in nodes], dtype=torch.int64),
        sample=torch.tensor(numbers, dtype=torch.int64),
    )
