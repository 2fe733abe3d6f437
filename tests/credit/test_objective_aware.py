import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit import GroupCredit, ObjectiveAwareCredit
from thalweg.flow import DanceSDE
from thalweg.rollout import AllSteps, Rollout, Root, Window, grow

PROMPTS = (Prompt("a", {"shift": 1.0}), Prompt("b", {"shift": 3.0}))
ROLLOUT = Rollout(plan=AllSteps(), group_size=3, steps=6, kernel=DanceSDE(noise_level=0.3))
ONE = {"a": torch.tensor([0.0, 2.0, 7.0, 1.0, 1.5, -3.0])}
OPPOSED = ONE | {"b": -ONE["a"]}


def forest_of(policy, rollout=ROLLOUT):
    roots = [Root(slot, group, slot * 3 + group, slot) for slot in (0, 1) for group in range(3)]
    return grow(policy, PROMPTS, roots, rollout, seed=0, iteration=0)


def assign(credit, forest, rewards):
    return credit.assign(forest, Scores(rewards), dict.fromkeys(rewards, 1.0), Processes())


def step_weights(forest, weigh_steps):
    """w_ij of every sample (rows) and trained step (columns)."""
    found = assign(ObjectiveAwareCredit(weigh_steps=weigh_steps), forest, ONE)
    host = assign(GroupCredit(), forest, ONE)
    trained = [at for at, level in enumerate(forest.levels) if level.trained.any()]
    return torch.cat([found.levels[at] / host.leaves for at in trained], 1)


@pytest.mark.parametrize("weigh_steps", ["prompt", "sample"])
@pytest.mark.parametrize("plan", [AllSteps(), Window(size=2, start=1, move="random", per_prompt=True)])
def test_weights_of_the_trained_steps_of_a_sample_are_one_on_average(plan, weigh_steps, linear_policy):
    forest = forest_of(linear_policy(), ROLLOUT.model_copy(update={"plan": plan}))
    trained = torch.stack([level.trained for level in forest.levels if level.trained.any()], 1)
    weights = torch.where(trained, step_weights(forest, weigh_steps), 0)
    assert_close(weights.sum(1), trained.sum(1).float(), atol=1e-4, rtol=0)
    assert weights[trained].std() > 0.01


def test_a_step_weighs_by_how_far_it_turned_the_state_towards_the_sample(linear_policy):
    forest = forest_of(linear_policy())
    states = torch.stack([level.latents for level in forest.levels[:-1]], 1).double()  # (6 samples, 6 states)
    near = cosine_similarity(states, forest.latents.double()[:, None], dim=-1)
    progress = near.diff(dim=1).clamp(min=0) + 1e-3
    expected = 5 * progress / progress.sum(1, keepdim=True)
    assert_close(step_weights(forest, "sample"), expected.float(), atol=1e-4, rtol=1e-3)
    shared = progress.view(2, 3, 5).mean(1).repeat_interleave(3, 0)
    expected = 5 * shared / shared.sum(1, keepdim=True)
    assert_close(step_weights(forest, "prompt"), expected.float(), atol=1e-4, rtol=1e-3)


def test_of_one_reward_and_without_step_weights_it_is_group_credit(linear_policy):
    forest = forest_of(linear_policy())
    found = assign(ObjectiveAwareCredit(weigh_steps="none"), forest, ONE)
    for one, other in zip(found.levels, assign(GroupCredit(), forest, ONE).levels, strict=True):
        assert_close(one, other)


def test_opposed_rewards_cancel_where_nothing_is_explored(linear_policy):
    forest = forest_of(linear_policy())
    found = assign(ObjectiveAwareCredit(exploration=0), forest, OPPOSED)
    assert max(float(level.abs().max()) for level in found.levels) < 1e-6


@pytest.mark.parametrize(
    ("advantages", "shares"),
    [
        ([1.0, 2.0], [1.0, 0.0]),  # they agree: the more cautious
        ([-3.0, -2.0], [0.0, 1.0]),
        ([-1.0, 2.0], [2 / 3, 1 / 3]),  # cancel: -2/3 + 2/3
        ([0.0, 2.0], [1.0, 0.0]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([1.0, 1.0, -4.0], [0.4, 0.4, 0.2]),
    ],
)
def test_shares_make_the_sum_of_advantages_least_and_explore_equally(advantages, shares):
    given = torch.tensor([advantages])
    assert_close(ObjectiveAwareCredit(exploration=0).shares(given), torch.tensor([shares]))
    mixed = ObjectiveAwareCredit(exploration=0.4).shares(given)
    assert_close(mixed, torch.tensor([[0.6 * c + 0.4 / len(shares) for c in shares]]))
