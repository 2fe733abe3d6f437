"""Samples and what they are worth: prompts in, a forest and its scores out. Shapes: B samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Forest, Scores
from thalweg.core.noise import Address
from thalweg.core.processes import Processes
from thalweg.core.values import Metrics, Prompt
from thalweg.credit import BlameCredit
from thalweg.models import Policy
from thalweg.models.sizes import decoded
from thalweg.objectives.contract import keeps_mean, keeps_states
from thalweg.rewards import Reward, finished, score_all, score_steps, total, value_of
from thalweg.rewards.world import WorldReward
from thalweg.rollout import Deterministic, Rollout, Root, grow, rank_agreement
from thalweg.rollout.grow import LEAVES_PER_ROOT
from thalweg.rollout.shares import share_of
from thalweg.training.given import with_given
from thalweg.training.recipe.schema import Recipe


@dataclass(frozen=True)
class Collected:
    """This process's part of an iteration's samples."""

    forest: Forest
    looks: dict[int, float] | None = None
    """What the cheap sample of each root was worth, by the number of the root, where the rollout explores."""


Grows = Callable[[Recipe, Policy, Sequence[Prompt], Sequence[Root], Rollout, int], Forest]
"""(recipe, policy, prompts, roots, rollout, iteration) -> the forest over these roots. The rollout is the
recipe's, or a look of it. `grow_here`, or workers (`training.distribution.workers`).
"""


def grow_here(
    recipe: Recipe,
    policy: Policy,
    prompts: Sequence[Prompt],
    roots: Sequence[Root],
    rollout: Rollout,
    iteration: int,
) -> Forest:
    """Grow with this process's own policy."""
    return grow(
        policy,
        prompts,
        roots,
        rollout,
        seed=recipe.seed,
        iteration=iteration,
        keep_mean=keeps_mean(recipe.objective),
        keep_states=keeps_states(recipe.objective),
        value=None if rollout.guidance is None else value_of(recipe.rewards, rollout.guidance.reward),
    )


def collect(
    recipe: Recipe,
    policy: Policy,
    asked: Sequence[Prompt],
    processes: Processes,
    iteration: int,
    grows: Grows = grow_here,
) -> Collected:
    """Grow this process's part of the iteration's forest."""
    rollout, looks = recipe.rollout, None
    if rollout.explore is None:
        roots = roots_of(len(asked), rollout.num_starts)
    else:
        roots, looks = _explored(recipe, policy, asked, processes, iteration, grows)
    mine = share_of([roots[i] for i in processes.share(len(roots))])
    given = [root for root in mine.roots if root.seed_group < len(rollout.given)]
    drawn = [root for root in mine.roots if not rollout.given or root.seed_group >= len(rollout.given)]
    forest = grows(recipe, policy, [asked[row] for row in mine.rows], drawn, rollout, iteration)
    if rollout.given:
        forest = with_given(recipe, policy, forest, given, iteration)
    return Collected(forest, looks)


def judge(
    recipe: Recipe,
    policy: Policy,
    forest: Forest,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
) -> Scores:
    """Every reward of what it judges: samples, probes, or states in the middle of denoising."""
    of_samples = finished(recipe.rewards)
    probes = {}
    if len(forest.probe_node):
        probes = score_all(of_samples, decoded(policy, forest.probe_latents, forest.probe_prompts))
    made, marks = decoded(policy, forest.latents, forest.leaf_prompts), None
    if isinstance(recipe.credit, BlameCredit):
        judge_of_places = next(reward for reward in recipe.rewards if isinstance(reward, WorldReward))
        (images, asked, _), *others = made
        assert isinstance(images, torch.Tensor) and not others  # an embedded world's: images of one size
        marks = judge_of_places.marks(images, asked)
    return Scores(
        leaves=processes.as_first(score_all(of_samples, made)),
        steps=score_steps(recipe.rewards, forest),
        probes=processes.as_first(probes),
        marks=marks,
    )


def agreement(
    collected: Collected,
    scores: Mapping[str, Float[Tensor, " B"]],
    rewards: Sequence[Reward],
    processes: Processes,
) -> Metrics:
    """How well cheap samples ranked the noises that were chosen, over all processes; alarming below .7."""
    if collected.looks is None:
        return {}
    # A deterministic rollout has one sample for each root.
    roots = (collected.forest.leaves.sample // LEAVES_PER_ROOT).tolist()
    looks = torch.tensor([collected.looks[root] for root in roots], dtype=torch.float64)
    everyone = processes.gather({"cheap": looks, "full": total(scores, finished(rewards)).double()})
    known = everyone["full"].isfinite() & everyone["cheap"].isfinite()
    return {"explore/rank_agreement": rank_agreement(everyone["cheap"][known], everyone["full"][known])}


def roots_of(num_prompts: int, per_prompt: int) -> list[Root]:
    """The first `per_prompt` initial noises of each prompt."""
    return [
        Root(prompt_slot=slot, seed_group=group, number=slot * per_prompt + group, condition=slot)
        for slot in range(num_prompts)
        for group in range(per_prompt)
    ]


def _explored(
    recipe: Recipe,
    policy: Policy,
    asked: Sequence[Prompt],
    processes: Processes,
    iteration: int,
    grows: Grows,
) -> tuple[list[Root], dict[int, float]]:
    """The roots chosen among the pool, and what this process's ones looked worth."""
    rollout, explore = recipe.rollout, recipe.rollout.explore
    assert explore is not None
    pool = roots_of(len(asked), explore.pool)
    mine = share_of([pool[i] for i in processes.share(len(pool))])
    cheap = Rollout(
        plan=Deterministic(),
        group_size=explore.pool,
        steps=explore.steps,
        schedule=rollout.schedule,
        solver=rollout.solver,
        weights=explore.weights,
        micro_batch=rollout.micro_batch,
    )
    forest = grows(recipe, policy, [asked[row] for row in mine.rows], mine.roots, cheap, iteration)
    of_samples = finished(recipe.rewards)
    scores = score_all(of_samples, decoded(policy, forest.latents, forest.leaf_prompts))
    everyone = processes.gather({"reward": total(scores, of_samples).double(), "of": forest.leaves.sample})
    by_prompt = everyone["reward"][everyone["of"].argsort()].view(len(asked), explore.pool)
    chosen = []
    for slot, rewards in enumerate(by_prompt):
        draw = Address(recipe.seed, "selection", iteration, slot, path=(3,))
        for place, group in enumerate(explore.chosen(rewards, rollout.num_roots, draw).tolist()):
            chosen.append(Root(slot, group, slot * rollout.num_roots + place, slot))
    own = [chosen[i] for i in processes.share(len(chosen))]
    return chosen, {root.number: float(by_prompt[root.prompt_slot, root.seed_group]) for root in own}
