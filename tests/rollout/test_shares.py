"""A forest that was grown in shares is the forest of all roots: every state, edge, end and number."""

from dataclasses import fields, is_dataclass

import pytest
import torch

from thalweg.core.values import Prompt
from thalweg.flow import DPMSolver, FlowSDE
from thalweg.rollout import (
    AllSteps,
    Branch,
    BranchBudget,
    Candidates,
    Deterministic,
    Rollout,
    Root,
    Tree,
    Window,
    grow,
)
from thalweg.rollout.shares import joined, share_of, split

PROMPTS = (Prompt("left", {"shift": -1.0}), Prompt("right", {"shift": 2.0}), Prompt("up", {"shift": 0.5}))
SDE = {"kernel": FlowSDE(), "steps": 6}
ROLLOUTS = {
    "chains": Rollout(plan=AllSteps(), group_size=3, **SDE),
    "chains with memory": Rollout(plan=Deterministic(), group_size=3, steps=5, solver=DPMSolver()),
    "windows of each prompt's own": Rollout(
        plan=Window(size=1, move="random", per_prompt=True), group_size=2, **SDE
    ),
    "forks": Rollout(plan=Tree(branching=2, forks=(0, 2)), group_size=4, seed_groups=1, **SDE),
    "candidates": Rollout(plan=Candidates(num_candidates=3), group_size=2, **SDE),
    "branches": Rollout(plan=Branch(num_branch_steps=2, last_step=3), group_size=8, seed_groups=2, **SDE),
    "a budget of branches": Rollout(
        plan=BranchBudget(branches=(2, 0, 2)), group_size=4, seed_groups=1, kernel=FlowSDE(), steps=4
    ),
    "probes": Rollout(plan=Window(size=2, start=1, move="fixed"), group_size=3, probes=True, **SDE),
}


def roots_of(rollout: Rollout) -> list[Root]:
    return [
        Root(prompt_slot=slot, seed_group=group, number=slot * rollout.num_roots + group, condition=slot)
        for slot in range(len(PROMPTS))
        for group in range(rollout.num_roots)
    ]


def assert_same(one, other, place: str = "forest") -> None:
    """Everything that two forests hold, whatever it is."""
    assert type(one) is type(other), place
    if is_dataclass(one) and not isinstance(one, Prompt):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{place}.{field.name}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_same(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, tuple):
        for at, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}[{at}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), place
    else:
        assert one == other, place


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("name", ROLLOUTS)
def test_the_forests_of_shares_make_the_forest_of_the_whole(name, count, linear_policy):
    policy, rollout = linear_policy(), ROLLOUTS[name]
    roots, settings = roots_of(rollout), {"seed": 3, "iteration": 1, "keep_mean": True}
    for keep_states in (False, True):
        settings["keep_states"] = keep_states
        whole = grow(policy, PROMPTS, roots, rollout, **settings)
        shares = split(roots, count)
        forests = [
            grow(policy, [PROMPTS[row] for row in share.rows], share.roots, rollout, **settings)
            for share in shares
        ]
        assert len(shares) == min(count, len(roots))
        assert_same(joined(forests, shares, PROMPTS, policy.encode(PROMPTS)), whole)


def test_shares_are_contiguous_and_as_equal_as_can_be():
    roots = roots_of(ROLLOUTS["chains"])  # 9 of them, 3 of each prompt
    shares = split(roots, 4)
    assert [[root.number for root in share.roots] for share in shares] == [[0, 1], [2, 3], [4, 5], [6, 7, 8]]
    assert [share.rows for share in shares] == [(0,), (0, 1), (1,), (2,)]
    assert split([], 4) == []


def test_a_share_has_the_prompts_of_its_roots_alone():
    share = share_of([Root(5, 0, 0, 4), Root(7, 1, 1, 6), Root(5, 2, 2, 4)])
    assert share.rows == (4, 6)
    assert [root.condition for root in share.roots] == [0, 1, 0]
    assert [root.prompt_slot for root in share.roots] == [5, 7, 5]


def test_a_forest_moves_with_its_states_and_its_means(linear_policy):
    rollout = ROLLOUTS["chains"]
    forest = grow(
        linear_policy(), PROMPTS, roots_of(rollout), rollout, seed=0, iteration=0, keep_mean=True
    ).to(torch.device("meta"))
    assert {level.latents.device.type for level in forest.levels} == {"meta"}
    assert {level.mean.device.type for level in forest.levels if level.mean is not None} == {"meta"}
    assert forest.levels[1].log_prob.device.type == forest.leaf_node.device.type == "cpu"
