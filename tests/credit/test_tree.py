import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit import DepthPrune, Selection, TreeCredit
from thalweg.credit.tree import aggregate
from thalweg.flow import FlowSDE
from thalweg.objectives.path_rows import transitions
from thalweg.rollout import Rollout, Root, Tree, grow

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))
RAW = {"std": "none", "limit": None}


def tree(policy, plan, steps, seed_groups=1, slots=(0, 1)):
    """A forest of one tree for each of two prompts."""
    size = plan.size or steps - 1
    leaves = plan.branching ** (size if plan.forks is None else len(plan.forks))
    rollout = Rollout(
        plan=plan, group_size=leaves * seed_groups, seed_groups=seed_groups, steps=steps, kernel=FlowSDE()
    )
    roots = [Root(s, g, s * seed_groups + g, s) for s in slots for g in range(seed_groups)]
    return grow(policy, PROMPTS[: len(slots)], roots, rollout, seed=0, iteration=0)


def assign(credit, forest, rewards):
    return credit.assign(forest, Scores({"r": rewards}), {"r": 1.0}, Processes())


def random(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_values_of_a_small_tree_worked_out_by_hand(linear_policy):
    # Two drawn steps, both fork into two. Samples 0, 2 | 4, 10; the other prompt's are all 5.
    forest = tree(linear_policy(), Tree(branching=2), steps=3)
    rewards = torch.tensor([0.0, 2.0, 4.0, 10.0, 5.0, 5.0, 5.0, 5.0])

    by_step = assign(TreeCredit(normalize_at="step", epsilon=0), forest, rewards)
    # Nodes 1, 7: mean 4, std 3. Nodes 0, 2, 4, 10: mean 4, std sqrt(14).
    assert_close(by_step.levels[1].flatten(), torch.tensor([-1.0, 1.0, 0.0, 0.0]))
    lowest = torch.tensor([-4.0, -2.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0]) / 14**0.5
    assert_close(by_step.levels[2].flatten(), lowest)
    assert_close(by_step.levels[3].flatten(), lowest)

    at_leaves = assign(TreeCredit(epsilon=0), forest, rewards)
    assert_close(at_leaves.levels[2].flatten(), lowest)
    assert_close(at_leaves.levels[1].flatten(), torch.tensor([-3.0, 3.0, 0.0, 0.0]) / 14**0.5)
    best = assign(TreeCredit(aggregate="max", **RAW), forest, rewards)
    assert_close(best.levels[1].flatten(), torch.tensor([-2.0, 6.0, 0.0, 0.0]))


def test_children_are_worth_their_parent_on_average(linear_policy):
    forest = tree(linear_policy(), Tree(branching=3, size=3, start=1, move="fixed"), steps=6)
    found = assign(TreeCredit(), forest, random(54))
    for at in range(2, 6):
        level = forest.levels[at]
        gap = found.levels[at] - found.levels[at - 1][level.parent]
        total = torch.zeros(len(forest.levels[at - 1].parent), 1).index_add(0, level.parent, gap)
        assert total.abs().max() < 1e-5
        assert (gap.abs().max() > 0.1) == (at < 5)  # the last step does not fork


def test_nodes_of_a_prompt_at_one_step_sum_to_zero(linear_policy):
    forest = tree(linear_policy(), Tree(branching=2, forks=(0, 2)), steps=5)
    found = assign(TreeCredit(normalize_at="step"), forest, random(8))
    for level, advantages in zip(forest.levels[1:], found.levels[1:], strict=True):
        for slot in (0, 1):
            own = forest.roots.prompt_slot[level.root] == slot
            assert abs(advantages[own].sum()) < 1e-5
            assert advantages[own].std(correction=0) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("normalize_at", ["leaves", "step"])
def test_without_a_fork_there_is_nothing_to_learn(normalize_at, linear_policy):
    forest = tree(linear_policy(), Tree(branching=1), steps=4)
    found = assign(TreeCredit(normalize_at=normalize_at), forest, random(2))
    assert all((level == 0).all() for level in found.levels[1:])


def test_every_sample_has_one_trained_edge_for_each_drawn_step(linear_policy):
    forest = tree(linear_policy(), Tree(branching=2, forks=(0, 2)), steps=6, seed_groups=2)
    rows = forest.leaf_node
    for at in range(6, 0, -1):
        level = forest.levels[at]
        assert level.trained[rows].tolist() == [at < 6] * 16
        rows = level.parent[rows]
    assert [len(level.parent) for level in forest.levels] == [4, 8, 8, 16, 16, 16, 16]


def test_only_forks_are_drawn_where_the_plan_says_so(linear_policy):
    forest = tree(linear_policy(), Tree(branching=2, forks=(0, 2), drawn="forks"), steps=5)
    assert [bool(level.trained.any()) for level in forest.levels] == [False, True, False, True, False, False]


def test_weights_by_log_prob_count_the_density_twice_and_the_mean_does_not(linear_policy):
    # Q = z_1² of 3 children in 2 dimensions has mean 1; weighed by their densities .74, the published bias.
    plan = Tree(branching=3, size=1, move="fixed")
    rollout = Rollout(plan=plan, group_size=9000, seed_groups=3000, steps=2, kernel=FlowSDE())
    roots = [Root(0, group, group, 0) for group in range(3000)]
    forest = grow(linear_policy((2,)), PROMPTS[:1], roots, rollout, seed=0, iteration=0)
    above, level = forest.levels[0], forest.levels[1]
    x, x_next, s = above.latents[level.parent], level.latents, level.std[:, None]
    # The exact flow of N(0, 1/4) at sigma = 1 has v = x: mean (1 - .) x0_hat = 0, and eps_hat = x.
    z = (x_next - level.k[:, None] * x) / s
    quality = z[:, :1].square()
    assert aggregate(forest, quality, "mean")[0].mean().item() == pytest.approx(1.0, abs=0.05)
    assert aggregate(forest, quality, "log_prob")[0].mean().item() == pytest.approx(0.74, abs=0.04)


def test_a_sample_without_a_reward_leaves_the_others_of_its_tree_their_credit(linear_policy):
    forest = tree(linear_policy(), Tree(branching=2), steps=3, slots=(0,))
    rewards = torch.tensor([0.0, float("nan"), 4.0, 8.0])
    found = assign(TreeCredit(**RAW), forest, rewards).levels[2].flatten()
    assert found.tolist() == [-4, 0, 0, 4]


@pytest.mark.parametrize("missing", [float("nan"), float("inf")])
def test_a_node_above_a_sample_without_a_reward_is_worth_its_others(missing, linear_policy):
    forest = tree(linear_policy(), Tree(branching=2), steps=3, slots=(0,))
    rewards = torch.tensor([0.0, missing, 4.0, 8.0])
    found = assign(TreeCredit(normalize_at="step", **RAW), forest, rewards)
    # Nodes 0 and 6 of mean 3; samples 0, 4 and 8 of mean 4.
    assert found.levels[1].flatten().tolist() == [-3, 3]
    assert found.levels[2].flatten().tolist() == [-4, 0, 0, 4]


def test_rewards_carried_up_cannot_be_normalised_each_before():
    with pytest.raises(ValidationError, match=r"normalize_at=step carries rewards up .* combine=sum_rewards"):
        TreeCredit(normalize_at="step", combine="sum_advantages")


def rows_of(forest, rewards):
    return transitions(forest, assign(TreeCredit(normalize_at="step", **RAW), forest, rewards))


@pytest.mark.parametrize(
    ("rule", "kept"),
    # Sets of siblings 0, 2 | 4, 10 | 1, 7 | 3, 6: their better ones; of the 8 samples 0, 1 and 10, 7.
    [("better_half", [2, 10, 7, 6]), ("extremes", [0, 10, 1, 7])],
)
def test_width_is_pruned_below_the_last_fork_and_values_stay(rule, kept, linear_policy):
    forest = tree(linear_policy(), Tree(branching=2, forks=(0, 1, 2)), steps=6, slots=(0,))
    rewards = torch.tensor([0.0, 2.0, 4.0, 10.0, 1.0, 7.0, 3.0, 6.0])
    rows = rows_of(forest, rewards)
    pruned = Selection(width_prune=rule, drop_zero=False).select(rows, seed=0, iteration=0)
    assert [(pruned.step == step).sum().item() for step in range(5)] == [2, 4, 4, 4, 4]
    reward_of = dict(zip(forest.leaves.sample.tolist(), rewards.tolist(), strict=True))
    for step in (2, 3, 4):
        assert sorted(reward_of[s] for s in pruned.sample[pruned.step == step].tolist()) == sorted(kept)
    value = {
        (s, j): a
        for s, j, a in zip(rows.sample.tolist(), rows.step.tolist(), rows.advantages.tolist(), strict=True)
    }
    assert pruned.advantages.tolist() == [
        value[key] for key in zip(pruned.sample.tolist(), pruned.step.tolist(), strict=True)
    ]


def test_the_pruned_depths_move_towards_noise_and_stop(linear_policy):
    rule = DepthPrune(size=2, start=4, stop=2, every=30)
    assert [rule.first(i) for i in (0, 29, 30, 59, 60, 1000)] == [4, 4, 3, 3, 2, 2]
    forest = tree(linear_policy(), Tree(branching=2, forks=(0,)), steps=8)
    rows = rows_of(forest, random(4))
    for iteration, dropped in ((0, {4, 5}), (30, {3, 4}), (90, {2, 3})):
        kept = Selection(depth_prune=rule).select(rows, seed=0, iteration=iteration)
        assert set(kept.step.tolist()) == set(range(7)) - dropped
    with pytest.raises(ValidationError, match="stop=6 lies after start=4"):
        DepthPrune(start=4, stop=6)


def test_levels_of_a_tree_can_count_the_same_however_many_edges_they_have(linear_policy):
    forest = tree(linear_policy(), Tree(branching=3, forks=(0, 1)), steps=4, seed_groups=2)
    rows = Selection(equal_levels=True).select(rows_of(forest, random(36)), seed=0, iteration=0)
    # 3 edges of the first step, 9 of the second and of the third, in each of 4 trees.
    assert_close(rows.weight, torch.tensor([1 / 3, 1 / 9, 1 / 9])[rows.step])
    for step in range(3):
        assert rows.weight[rows.step == step].sum() == pytest.approx(4)
