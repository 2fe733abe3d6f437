"""Grow a forest: follow each root's layout from initial noise to finished samples.

All rows at one noise level move together: one network pass for each node that has children, then a step of
the kernel or the solver to each child. Shapes: n rows of a level, r roots, ... latent axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thalweg.core.forest import Child, Forest, Layout, Leaves, Level, Roots
from thalweg.core.join import joined
from thalweg.core.noise import Address, normals
from thalweg.core.values import Condition, Prompt
from thalweg.flow import Memory, Transition, flow_norm
from thalweg.models.contract import HasAttention, HasParts, Policy
from thalweg.models.sizes import by_size, sizes_in
from thalweg.rollout.attention import Attention
from thalweg.rollout.guidance import Value
from thalweg.rollout.root import Root
from thalweg.rollout.settings import Rollout

LEAVES_PER_ROOT = 1 << 20
"""Room for the numbers of ends: root r owns r * LEAVES_PER_ROOT and the numbers after it, samples first."""


@dataclass(frozen=True)
class _Node:
    """A row of the frontier: the edge that led to it and the way from its root."""

    root: int
    child: Child
    path: tuple[int, ...] = ()
    fork_step: int = -1
    start: tuple[int, int] = (-1, -1)
    """Where a probe left the tree."""


@torch.no_grad()
def grow(
    policy: Policy,
    prompts: Sequence[Prompt],
    roots: Sequence[Root],
    rollout: Rollout,
    *,
    seed: int,
    iteration: int,
    keep_mean: bool = False,
    keep_states: bool = False,
    value: Value | None = None,
) -> Forest:
    """The forest over `roots`, under the weights that `rollout` names; trees of a size grow together.

    `keep_mean` stores the means of trained edges, `keep_states` all states; `value` is the reward that
    `rollout.guidance` climbs.
    """
    condition = policy.encode(prompts)
    sizes = sizes_in(condition, torch.tensor([root.condition for root in roots], dtype=torch.int64))
    forests = [
        _grown(
            at,
            prompts,
            condition,
            [roots[row] for row in rows.tolist()],
            rollout.resized(math.prod(at.latent_shape) / math.prod(policy.latent_shape)),
            seed,
            iteration,
            keep_mean,
            keep_states,
            value,
        )
        for at, rows in by_size(policy, sizes)
    ]
    return forests[0] if len(forests) == 1 else joined(forests)


def _grown(
    policy: Policy,
    prompts: Sequence[Prompt],
    condition: Condition,
    roots: Sequence[Root],
    rollout: Rollout,
    seed: int,
    iteration: int,
    keep_mean: bool,
    keep_states: bool,
    value: Value | None,
) -> Forest:
    """Trees whose samples all have the policy's size."""

    def to_latent_precision(x: Tensor) -> Tensor:
        # What the network will see is what gets a probability and what is stored.
        return x.to(policy.latent_dtype).float()

    sigmas = rollout.sigmas(seed, iteration)
    slots = sorted({root.prompt_slot for root in roots})
    of_slot = {slot: rollout.layout(seed, iteration, slot) for slot in slots}
    layouts = [of_slot[root.prompt_slot] for root in roots]
    rows = torch.tensor([root.condition for root in roots], dtype=torch.int64)
    vary = rollout.perturbation
    nodes = [_Node(row, Child(stochastic=False)) for row in range(len(roots))]
    starts = [Address(seed, "initial", iteration, root.prompt_slot, root.seed_group) for root in roots]
    # 1 at σ = 1; below, noise and data of unit variance are that large together.
    noise = flow_norm(sigmas[0]) * normals(starts, policy.latent_shape)
    x = to_latent_precision(noise.to(policy.device))
    levels = [_level(layouts, 0, sigmas, nodes, torch.full((len(nodes),), -1), x, None, False, keep_states)]
    memory: Memory = None
    attention, steps = rollout.attention, range(len(sigmas) - 1)
    noted = [step for step in steps if attention is not None and attention.acts(step, len(steps))]
    paid = torch.zeros_like(x) if noted else None
    with policy.weights.use(rollout.weights):
        # Embeddings are those of the weights that act, so that a variant that is not moved changes nothing.
        varied = (
            vary.variants_of(policy, condition, roots, seed=seed, iteration=iteration) if vary else condition
        )
        for step in steps:
            of_root = torch.tensor([node.root for node in nodes], dtype=torch.int64)
            here = condition.index(rows[of_root])
            if vary is not None:
                here = vary.at(policy, here, varied.index(of_root), float(sigmas[step]))
            nodes, parents = _children(layouts, nodes, step)
            with policy.weights.use(rollout.weights_at(step, len(steps))):
                velocity, paid_here = _velocity(
                    policy,
                    x,
                    sigmas[step],
                    here,
                    parents,
                    rollout.micro_batch,
                    attention if step in noted else None,
                )
            x = x[parents]
            if paid is not None:
                paid = paid[parents] if paid_here is None else paid[parents] + paid_here / len(noted)
            memory = None if memory is None else {name: kept[parents] for name, kept in memory.items()}
            x_next, memory = rollout.solver.step(
                x, velocity, float(sigmas[step]), float(sigmas[step + 1]), memory
            )
            drawn = [row for row, node in enumerate(nodes) if node.child.stochastic]
            transition = None
            if rollout.kernel is not None and drawn:
                transition = _transition(rollout, nodes, x, velocity, sigmas[step], sigmas[step + 1])
                addresses = [_draw(roots, nodes[row], seed, iteration, step) for row in drawn]
                noise = torch.zeros_like(x)
                noise[drawn] = normals(addresses, policy.latent_shape).to(x.device)
                x_next[drawn] = transition.sample(noise)[drawn]
                if rollout.guidance is not None and value is not None and rollout.guidance.acts(step):
                    asked = [prompts[roots[nodes[row].root].condition] for row in drawn]
                    directions = normals([replace(a, purpose="guidance") for a in addresses], x.shape[1:])
                    x_next[drawn] += rollout.guidance.shift(
                        value,
                        x[drawn],
                        float(sigmas[step]),
                        float(sigmas[step + 1]),
                        asked,
                        directions.to(x.device),
                    )
            x = to_latent_precision(x_next)
            levels.append(
                _level(layouts, step + 1, sigmas, nodes, parents, x, transition, keep_mean, keep_states)
            )
    parts = policy.parts if isinstance(policy, HasParts) else (math.prod(policy.latent_shape),)
    forest = _forest(levels, nodes, roots, prompts, condition)
    return replace(
        forest,
        parts=parts,
        iteration=iteration,
        attention=None if paid is None else paid[forest.leaf_node.to(paid.device)].cpu(),
    )


def _velocity(
    policy: Policy,
    x: Tensor,
    sigma: Tensor,
    here: Condition,
    parents: Tensor,
    micro_batch: int,
    attention: Attention | None,
) -> tuple[Tensor, Tensor | None]:
    """The velocity at each child's parent, and what attention its elements are paid where that is noted: one
    pass for each node that has children.
    """
    passing, of_child = torch.unique(parents, return_inverse=True)
    if len(passing) == 0:
        return x[passing], None
    asked = ((x[p], sigma.expand(len(p)), here.index(p)) for p in passing.split(micro_batch))
    if attention is None:
        return torch.cat([policy.velocity(*at) for at in asked])[of_child], None
    assert isinstance(policy, HasAttention)  # asked when it was loaded
    pairs = [policy.attended(*at, attention.modules, attention.blocks) for at in asked]
    velocity, paid = (torch.cat(column)[of_child] for column in zip(*pairs, strict=True))
    return velocity, paid


def _transition(
    rollout: Rollout, nodes: Sequence[_Node], x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Transition:
    assert rollout.kernel is not None
    factor, spread = (
        torch.tensor([getattr(node.child, name) for node in nodes], device=x.device)
        for name in ("noise", "spread")
    )
    if bool((factor == 1).all()):
        step = rollout.kernel.transition(x, velocity, sigma, sigma_next)
    else:
        step = rollout.kernel.transition(x, velocity, sigma, sigma_next, noise_factor=factor)
    return step if bool((spread == 1).all()) else step.spread(spread)


def _draw(roots: Sequence[Root], node: _Node, seed: int, iteration: int, step: int) -> Address:
    root = roots[node.root]
    return Address(seed, "transition", iteration, root.prompt_slot, root.seed_group, node.path, step)


def _children(
    layouts: Sequence[Layout], nodes: Sequence[_Node], step: int
) -> tuple[list[_Node], Int64[Tensor, " n"]]:
    """The next level's nodes, siblings side by side, and the row of each one's parent.

    Only drawn siblings lengthen the path: an only child keeps its parent's, so that a branch factor of 1 is a
    chain.
    """
    grown, parents = [], []
    for row, node in enumerate(nodes):
        children = layouts[node.root][step][node.child.role]
        forks = sum(child.stochastic for child in children) > 1
        for number, child in enumerate(children):
            is_branch = forks and child.stochastic
            grown.append(
                _Node(
                    node.root,
                    child,
                    (*node.path, number) if is_branch else node.path,
                    step if is_branch else node.fork_step,
                    (step, row) if child.probe and not node.child.probe else node.start,
                )
            )
            parents.append(row)
    return grown, torch.tensor(parents, dtype=torch.int64)


def _level(
    layouts: Sequence[Layout],
    at: int,
    sigmas: Float[Tensor, " M"],
    nodes: Sequence[_Node],
    parents: Int64[Tensor, " n"],
    x: Float[Tensor, "n ..."],
    transition: Transition | None,
    keep_mean: bool,
    keep_states: bool,
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
    is_last = at == len(sigmas) - 1
    below = [() if is_last else layouts[node.root][at][node.child.role] for node in nodes]
    kept = trained | torch.tensor(
        [keep_states or not children or any(child.trained for child in children) for children in below],
        dtype=torch.bool,
    )
    row = torch.where(kept, kept.long().cumsum(0) - 1, -1)
    return Level(
        sigma=sigmas[at].repeat(len(nodes)),
        parent=parents,
        root=torch.tensor([node.root for node in nodes], dtype=torch.int64),
        end=torch.tensor([-1 if children else 0 for children in below], dtype=torch.int64),
        trained=trained,
        k=k,
        std=std,
        log_prob=log_prob,
        latents=x if bool(kept.all()) else x[kept.to(x.device)],
        row=row,
        depth=torch.tensor([len(node.path) for node in nodes], dtype=torch.int64),
        mean=transition.mean[trained.to(x.device)] if keep_mean and transition is not None else None,
    )


def _forest(
    levels: Sequence[Level],
    nodes: Sequence[_Node],
    roots: Sequence[Root],
    prompts: Sequence[Prompt],
    condition: Condition,
) -> Forest:
    """Number the ends and sort the last level's nodes into samples and probes."""

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    leaves = [row for row, node in enumerate(nodes) if not node.child.probe]
    probes = [row for row, node in enumerate(nodes) if node.child.probe]
    used = dict.fromkeys(range(len(roots)), 0)
    # Samples first, so that side ways change no sample's number.
    order = [(len(levels) - 1, leaves), (len(levels) - 1, probes)]
    order += [(at, (level.end == 0).nonzero().flatten().tolist()) for at, level in enumerate(levels[:-1])]
    for at, rows in order:
        for row in rows:
            root = int(levels[at].root[row])
            levels[at].end[row] = roots[root].number * LEAVES_PER_ROOT + used[root]
            used[root] += 1
    of = [roots[nodes[row].root] for row in leaves]
    return Forest(
        levels=tuple(levels),
        roots=Roots(
            prompt_slot=column([root.prompt_slot for root in roots]),
            seed_group=column([root.seed_group for root in roots]),
            condition=column([root.condition for root in roots]),
        ),
        leaves=Leaves(
            prompt_slot=column([root.prompt_slot for root in of]),
            seed_group=column([root.seed_group for root in of]),
            fork_step=column([nodes[row].fork_step for row in leaves]),
            sample=levels[-1].end[leaves],
        ),
        prompts=tuple(prompts),
        condition=condition,
        leaf_node=column(leaves),
        probe_node=column(probes),
        probe_start=torch.tensor([nodes[row].start for row in probes], dtype=torch.int64).view(-1, 2),
    )
