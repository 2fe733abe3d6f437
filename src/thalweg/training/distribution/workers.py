"""Samples grown by workers of a Ray cluster (`core.team`), while the process that asked waits for them.

Each worker loads the recipe's model itself. For a rollout it gets its share of the process's roots, which
count as those of a process of their own, and the trained tensors of the named weights that act in it; frozen
weights are never sent. Forests come back and are joined in order (`rollout.shares`). Draws have addresses, so
the samples are the same ones with any number of workers, to rounding.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load, save

from thalweg.core.denormals import flushed_denormals
from thalweg.core.forest import Forest
from thalweg.core.team import Team
from thalweg.core.values import Condition, Prompt
from thalweg.models import EncodesAhead, Passes, Policy
from thalweg.models.shards import put
from thalweg.rewards import ScorerReward
from thalweg.rollout import Rollout, Root
from thalweg.rollout.shares import joined, split
from thalweg.training.collect import Grows, grow_here
from thalweg.training.data.prompts import PromptStream
from thalweg.training.policy import load_policy
from thalweg.training.recipe.schema import Recipe


@contextmanager
def growing(recipe: Recipe, prompts: Sequence[Prompt] | PromptStream) -> Iterator[Grows]:
    """Who grows the samples of a run over these prompts; workers end with the block.

    Raises UserError where they do not start.
    """
    workers = recipe.parallel.workers
    if workers is None:
        yield grow_here
        return
    team = Team(
        "parallel.workers",
        count=workers.count,
        cpus=workers.cpus_per_worker,
        gpus=workers.gpus_per_worker,
        address=workers.address,
        address_key="parallel.workers.address",
        remedy="see whether the recipe runs without workers",
    )
    # Of the rewards, a rollout reads the scorer of noisy states alone; others may hold what cannot be sent.
    told = recipe.model_copy(
        update={"rewards": tuple(r for r in recipe.rewards if isinstance(r, ScorerReward))}
    )
    known = () if isinstance(prompts, PromptStream) else tuple(prompts)
    try:
        team.open(_Worker, told, known, timeout=workers.start_timeout)
        yield _GrowsThere(team, workers.timeout)
    finally:
        team.close()


@dataclass(frozen=True)
class _GrowsThere:
    """Grows with a team of workers; a `training.collect.Grows`."""

    team: Team
    timeout: float
    """Seconds to wait for the samples."""

    def __call__(
        self,
        recipe: Recipe,
        policy: Policy,
        prompts: Sequence[Prompt],
        roots: Sequence[Root],
        rollout: Rollout,
        iteration: int,
    ) -> Forest:
        shares = split(roots, self.team.count)
        if not shares:
            return grow_here(recipe, policy, prompts, roots, rollout, iteration)
        weights = self.team.share({name: _packed(policy, name) for name in rollout.acting})
        asked = self.team.ask(
            "grow",
            [
                (weights, [prompts[row] for row in share.rows], share.roots, rollout, iteration)
                for share in shares
            ],
        )
        # While they work. Rows of a condition may name what only this process's policy holds.
        condition = policy.encode(prompts)
        answers = self.team.answers(asked, self.timeout)
        for _, passes in answers:
            policy.passes.evaluations += passes.evaluations
            policy.passes.backwards += passes.backwards
        return joined([forest for forest, _ in answers], shares, prompts, condition).to(policy.device)


class _Worker:
    """What runs on the cluster."""

    def __init__(self, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
        self._recipe, self._prompts = recipe, prompts

    def open(self) -> None:
        # Every set that acts is sent, so what some start from need not be on this machine.
        self._policy = load_policy(self._recipe, is_saved=True)
        if isinstance(self._policy, EncodesAhead):
            self._policy.encode_ahead(self._prompts)

    def grow(
        self,
        weights: Mapping[str, bytes],
        prompts: Sequence[Prompt],
        roots: Sequence[Root],
        rollout: Rollout,
        iteration: int,
    ) -> tuple[Forest, Passes]:
        """The forest, on the CPU and without its condition, and what it took."""
        for name, values in weights.items():
            sent = load(values)
            for parameter, tensor in self._policy.weights.tensors(name).items():
                put(tensor, sent[parameter])
        before = replace(self._policy.passes)
        with flushed_denormals():
            forest = grow_here(self._recipe, self._policy, prompts, roots, rollout, iteration)
        took = Passes(
            self._policy.passes.evaluations - before.evaluations,
            self._policy.passes.backwards - before.backwards,
        )
        return replace(forest, condition=Condition({})).to(torch.device("cpu")), took


def _packed(policy: Policy, name: str) -> bytes:
    """The trained tensors of a set of weights, as safetensors."""
    tensors = policy.weights.tensors(name)
    return save({parameter: tensor.detach().cpu().contiguous() for parameter, tensor in tensors.items()})
