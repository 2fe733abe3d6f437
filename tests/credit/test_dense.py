import numpy as np
import pytest
import torch
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit import DenseCredit
from thalweg.flow import FlowSDE
from thalweg.rollout import AllSteps, Branch, Rollout, Root, Window, grow

PROMPTS = (Prompt("a", {"shift": -1.0}), Prompt("b", {"shift": 2.0}))
RAW = {"std": "none", "limit": None}


def forest_of(policy, plan, *, kernel=FlowSDE(), **settings):  # noqa: B008  (frozen)
    rollout = Rollout(plan=plan, kernel=kernel, steps=6, probes=True, **({"group_size": 4} | settings))
    count = rollout.num_roots
    roots = [Root(s, g, s * count + g, s) for s in (0, 1) for g in range(count)]
    return grow(policy, PROMPTS, roots, rollout, seed=0, iteration=0), rollout


def quality(latents):
    """A reward that no closed form of the flow knows."""
    return latents.flatten(1).sin().sum(1)


def assign(credit, forest):
    scores = Scores({"r": quality(forest.latents)}, probes={"r": quality(forest.probe_latents)})
    return credit.assign(forest, scores, {"r": 1.0}, Processes())


def ode_value(x, level, rollout, shift):
    """The reward of the deterministic sample that a state at this level makes."""
    sigmas = rollout.sigmas().tolist()
    for sigma, sigma_next in zip(sigmas[level:-1], sigmas[level + 1 :], strict=True):
        variance = (1 - sigma) ** 2 / 4 + sigma**2
        v = (sigma - (1 - sigma) / 4) / variance * (x - (1 - sigma) * shift) - shift
        x = x + (sigma_next - sigma) * v
    return quality(x)


def test_gains_of_a_trajectory_add_up_to_its_reward_beyond_that_of_its_initial_noise(linear_policy):
    forest, rollout = forest_of(linear_policy(), AllSteps())
    found = assign(DenseCredit(**RAW), forest)
    total = sum(found.levels[at][forest.levels[at].trained, 0] for at in range(1, 6))
    start = forest.levels[0].latents
    shift = torch.tensor([-1.0] * 4 + [2.0] * 4)[:, None]
    whole = (quality(forest.latents) - ode_value(start, 0, rollout, shift)).view(2, 4)
    assert_close(total.view(2, 4), whole - whole.mean(1, keepdim=True), atol=1e-5, rtol=0)


def test_each_step_is_credited_with_what_the_deterministic_way_gained(linear_policy):
    forest, rollout = forest_of(linear_policy(), AllSteps())
    found = assign(DenseCredit(**RAW), forest)
    shift = torch.tensor([-1.0] * 4 + [2.0] * 4)[:, None]
    before = ode_value(forest.levels[0].latents, 0, rollout, shift)
    for at in range(1, 6):
        level = forest.levels[at]
        after = ode_value(level.latents[level.row[level.trained]], at, rollout, shift)
        gain = (after - before).view(2, 4)
        expected = gain - gain.mean(1, keepdim=True)
        assert_close(found.levels[at][level.trained, 0].view(2, 4), expected, atol=1e-5, rtol=1e-4)
        before = after


def test_next_to_no_noise_gains_next_to_nothing(linear_policy):
    forest, _ = forest_of(linear_policy(), AllSteps(), kernel=FlowSDE(noise_level=1e-4))
    found = assign(DenseCredit(**RAW), forest)
    assert max(float(level[level.isfinite()].abs().max()) for level in found.levels[1:6]) < 2e-3


def test_a_step_that_gains_little_is_divided_by_a_share_of_the_spread_of_rewards(linear_policy):
    forest, _ = forest_of(linear_policy(), AllSteps())
    raw = assign(DenseCredit(**RAW), forest)
    rewards = quality(forest.latents).double().numpy()
    floored, free = (assign(DenseCredit(std_floor=f, epsilon=0, limit=None), forest) for f in (0.5, 0.0))
    smaller = 0
    for at in range(1, 6):
        of = forest.levels[at].trained
        gain = raw.levels[at][of, 0].double().numpy().reshape(2, 4)
        std = gain.std(1, keepdims=True)
        smaller += (std < 0.5 * rewards.std()).sum()
        for found, least in ((floored, 0.5 * rewards.std()), (free, 0.0)):
            expected = torch.from_numpy(gain / np.maximum(std, least)).flatten().float()
            assert_close(found.levels[at][of, 0], expected, atol=1e-4, rtol=1e-3)
    assert smaller > 0


def test_probes_start_where_drawn_steps_start_and_samples_tell_the_rest(linear_policy):
    forest, rollout = forest_of(linear_policy(), Window(size=2, start=2, move="fixed"))
    # Of each of 8 samples the states before steps 2 and 3; the one after step 3 goes on without noise.
    assert sorted(forest.probe_start[:, 0].tolist()) == [2] * 8 + [3] * 8
    # A probe takes 6 - j steps, of which the first shares its pass.
    assert rollout.passes(0, 0, 1) == (4 * (6 + 3 + 2), 4 * 2)
    assert len(forest.leaves) == 8 and len(forest.probe_latents) == 16


def test_a_branch_gains_what_its_sample_has_beyond_the_trunk(linear_policy):
    forest, _ = forest_of(linear_policy(), Branch(num_branch_steps=1, last_step=0), seed_groups=1)
    found = assign(DenseCredit(**RAW), forest)
    rewards = quality(forest.latents).view(2, 4)
    of = forest.levels[1].trained
    # The trunk's worth is the same for all branches, and goes with the mean.
    assert_close(
        found.levels[1][of, 0].view(2, 4), rewards - rewards.mean(1, keepdim=True), atol=1e-5, rtol=0
    )
    assert (found.leaves.view(2, 4) - (rewards - rewards.mean(1, keepdim=True))).abs().max() < 1e-5


@pytest.mark.parametrize("seeds", [4, 1])
def test_probes_change_no_sample(seeds, linear_policy):
    forest, rollout = forest_of(linear_policy(), AllSteps(), seed_groups=seeds)
    count = rollout.num_roots
    roots = [Root(s, g, s * count + g, s) for s in (0, 1) for g in range(count)]
    plain = rollout.model_copy(update={"probes": False})
    host = grow(linear_policy(), PROMPTS, roots, plain, seed=0, iteration=0)
    assert torch.equal(forest.latents, host.latents)
    assert torch.equal(forest.leaves.sample, host.leaves.sample)
