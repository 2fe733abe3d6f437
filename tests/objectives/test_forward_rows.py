from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from thalweg.core.forest import Advantages
from thalweg.core.noise import Address
from thalweg.core.values import Prompt
from thalweg.flow import FlowSDE
from thalweg.objectives import ClippedRatio, Forward, RewardGradient
from thalweg.objectives.contract import keeps_states
from thalweg.objectives.forward_rows import samples
from thalweg.objectives.rules import Weighted
from thalweg.objectives.sigma_draw import Grid, LogitNormal, Stratified
from thalweg.objectives.surrogate import Regression
from thalweg.rollout import AllSteps, Deterministic, Rollout, Root, grow
from thalweg.training.recipe.load import load_recipe

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))
GRID = torch.linspace(1, 0.125, 8)
ROOTS = [Root(slot, group, slot * 2 + group, slot) for slot in (0, 1) for group in (0, 1)]


def ones(forest) -> Advantages:
    """The same advantage for every sample."""
    return forest.advantages(torch.ones(len(forest.leaves), 1))


def test_one_level_falls_into_each_stratum():
    draw = Stratified(num_sigmas=4, sigma_min=0.2, sigma_max=1.0)
    drawn = torch.stack([draw.draw(Address(0, "sigmas", iteration), GRID) for iteration in range(500)])
    for stratum in range(4):
        low = 0.2 + 0.2 * stratum
        column = drawn[:, stratum]
        assert low <= column.min() and column.max() <= low + 0.2 + 1e-6
        # Even inside the stratum: mean in the middle, standard error .0026.
        assert abs(column.mean() - low - 0.1) < 0.01


def test_levels_are_shifted_towards_noise():
    plain, shifted = (Stratified(shift=s).draw(Address(0, "sigmas"), GRID) for s in (1.0, 3.0))
    assert_close(shifted, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize("wrong", [{"num_sigmas": 0}, {"sigma_max": 1.5}, {"shift": 0}])
def test_levels_outside_the_flow_are_refused(wrong):
    with pytest.raises(ValidationError):
        Stratified(**wrong)


def forest_of(policy, roots):
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=3)
    return grow(policy, PROMPTS, roots, rollout, seed=0, iteration=4)


def test_each_sample_stands_under_every_level_drawn_for_it_with_noise_of_its_own(linear_policy):
    forest, draw = forest_of(linear_policy(), ROOTS), Stratified(num_sigmas=3)
    rows = samples(forest, forest.advantages(torch.arange(8.0).view(4, 2)), draw, seed=0, iteration=4)
    assert len(rows) == 12
    assert_close(rows.x0, forest.latents.repeat_interleave(3, 0))
    assert_close(rows.advantages, torch.arange(8.0).view(4, 2).repeat_interleave(3, 0))
    assert rows.step.tolist() == [0, 1, 2] * 4
    assert rows.condition.tolist() == rows.prompt_slot.tolist() == [0] * 6 + [1] * 6
    assert rows.sample.tolist() == forest.leaves.sample.repeat_interleave(3).tolist()
    assert rows.weight.tolist() == [1] * 12
    assert len(set(rows.sigma.tolist())) == 12
    noise = rows.noise.flatten()
    assert len(set(noise.tolist())) == len(noise)
    assert (rows.sigma.view(4, 3).diff(dim=1) > 0).all()


def test_levels_and_noise_do_not_depend_on_what_else_is_there(linear_policy):
    draw = Stratified()

    def drawn(roots, iteration):
        forest = forest_of(linear_policy(), roots)
        advantages = forest.advantages(torch.ones(len(roots), 1))
        return samples(forest, advantages, draw, seed=0, iteration=iteration)

    whole, part = drawn(ROOTS, 4), drawn(ROOTS[2:], 4)
    for name in ("x0", "sigma", "noise", "sample"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[6:])
    again = drawn(ROOTS, 5)
    assert (
        not torch.isclose(again.noise, whole.noise).any()
        and not torch.isclose(again.sigma, whole.sigma).any()
    )


def test_what_a_group_shares_are_levels_and_noise(linear_policy):
    forest = forest_of(linear_policy(), ROOTS)
    rows = samples(forest, ones(forest), Stratified(), seed=0, iteration=4, shared_in_group=True)
    sigma, noise = rows.sigma.view(2, 2, 3), rows.noise.view(2, 2, 3, 3)  # prompt, member, level
    assert torch.equal(sigma[:, 0], sigma[:, 1]) and torch.equal(noise[:, 0], noise[:, 1])
    assert not torch.isclose(sigma[0], sigma[1]).any()
    assert len(set(noise[:, 0].flatten().tolist())) == 18  # levels and prompts have noise of their own


def test_shared_levels_and_noise_make_the_errors_of_a_group_comparable(linear_policy):
    # V-GRPO's mean error of a sample; its spread over a group, in units of its mean. With many latent
    # elements the sample and its noise average out, and levels that differ are most of it.
    policy, levels = linear_policy((4096,)), 4
    rollout = Rollout(plan=Deterministic(), group_size=8, steps=8)
    roots = [Root(slot, group, slot * 8 + group, 0) for slot in range(8) for group in range(8)]
    forest = grow(policy, PROMPTS, roots, rollout, seed=0, iteration=0)
    variation = {}
    for shared in (False, True):
        objective = load_recipe("v-grpo").objective.model_copy(update={"shared_in_group": shared})
        rows = objective.experience(forest, ones(forest), seed=0, iteration=0)
        x, sigma = objective.inputs(rows)
        with torch.no_grad():
            velocity = policy.velocity(x, sigma, forest.condition.index(rows.condition))
        errors = objective.surrogate.error(velocity - (rows.noise - rows.x0), sigma)
        of_samples = errors.view(8, 8, levels).mean(2)  # prompt, member
        variation[shared] = (of_samples.std(1) / of_samples.mean(1)).mean()
    assert variation[True] < 0.6 * variation[False]


@pytest.mark.parametrize("shared", [False, True])
def test_one_noise_may_serve_all_levels(shared, linear_policy):
    forest = forest_of(linear_policy(), ROOTS)
    rows = samples(
        forest, ones(forest), Stratified(), seed=0, iteration=4, noise="one", shared_in_group=shared
    )
    noise = rows.noise.view(4, 3, 3)
    assert torch.equal(noise[:, :1].expand_as(noise), noise)
    assert len(set(noise[:, 0].flatten().tolist())) == (6 if shared else 12)


def test_the_rollouts_own_noise_is_what_each_sample_started_from(linear_policy):
    policy = linear_policy()
    forest = forest_of(policy, ROOTS)
    rows = samples(
        forest, ones(forest), Stratified(), seed=0, iteration=4, noise="rollout", shared_in_group=True
    )
    # From its own noise the deterministic rollout leads to the sample again.
    x = rows.noise[::3]
    condition = policy.encode(list(PROMPTS)).index(rows.condition[::3])
    sigmas = Rollout(plan=Deterministic(), group_size=2, steps=3).sigmas()
    for sigma, after in pairwise(sigmas):
        x = x + (after - sigma) * policy.velocity(x, sigma.expand(4), condition)
    assert_close(x, rows.x0[::3])
    assert torch.equal(rows.sigma.view(2, 2, 3)[:, 0], rows.sigma.view(2, 2, 3)[:, 1])


def test_members_that_start_from_one_noise_have_the_same_own_noise(linear_policy):
    roots = [Root(0, 0, 0, 0), Root(1, 0, 1, 1)]
    forest = forest_of(linear_policy(), roots)
    rows = samples(forest, ones(forest), Stratified(), seed=0, iteration=4, noise="rollout")
    starts = [Address(0, "initial", 4, slot, 0).normal((3,)) for slot in (0, 1)]
    assert_close(rows.noise, torch.stack(starts).repeat_interleave(3, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plan", [Deterministic(), AllSteps()], ids=["flow", "drawn"])
def test_on_its_path_a_sample_is_noised_into_the_states_it_went_through(plan, dtype, linear_policy):
    class Rounding(linear_policy):
        latent_dtype = dtype

    kernel = FlowSDE() if plan.stochastic else None
    rollout = Rollout(plan=plan, group_size=2, steps=5, kernel=kernel)
    forest = grow(Rounding(), PROMPTS, ROOTS, rollout, seed=0, iteration=4, keep_states=True)
    objective = Forward(rule=Weighted(), sigmas=Grid(num_sigmas=5), noise="path")
    rows = objective.experience(forest, ones(forest), seed=0, iteration=4)
    x, sigma = objective.inputs(rows)
    states = torch.stack([level.latents for level in forest.levels[:-1]], 1)  # chains of two prompts x two
    assert_close(sigma.view(4, 5), rollout.sigmas()[:-1].expand(4, 5))
    assert torch.equal(x.view(4, 5, 3)[:, 0], states[:, 0])  # at σ = 1 the initial noise itself
    assert_close(x.view(4, 5, 3), states, atol=1e-6, rtol=0)
    if dtype == torch.bfloat16:  # what the network sees is rounded again
        assert torch.equal(x.to(dtype).float().view(4, 5, 3), states)
    # The velocity that is asked for leads from the state straight to the sample.
    assert_close(x - sigma[:, None] * (rows.noise - rows.x0), rows.x0, atol=1e-5, rtol=0)


def test_fewer_levels_of_a_path_are_its_states_at_these_levels(linear_policy):
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=8)
    forest = grow(linear_policy(), PROMPTS, ROOTS, rollout, seed=0, iteration=4, keep_states=True)
    objective = Forward(rule=Weighted(), sigmas=Grid(num_sigmas=3, skip=2), noise="path")
    rows = objective.experience(forest, ones(forest), seed=0, iteration=4)
    x, sigma = objective.inputs(rows)
    assert len(set(sigma.tolist())) > 3  # samples draw levels of their own
    levels = {round(float(level.sigma[0]), 6): level for level in forest.levels}
    for row in range(len(rows)):
        state = levels[round(float(sigma[row]), 6)].latents[row // 3]
        assert_close(x[row], state, atol=1e-6, rtol=0)
    alone = grow(linear_policy(), PROMPTS, ROOTS[2:], rollout, seed=0, iteration=4, keep_states=True)
    again = objective.experience(alone, ones(alone), seed=0, iteration=4)
    assert torch.equal(again.noise, rows.noise[6:])


def test_states_are_kept_for_objectives_that_read_them():
    grid = Grid(num_sigmas=2)
    found = {n: keeps_states(Forward(rule=Weighted(), sigmas=grid, noise=n)) for n in ("path", "rollout")}
    assert found == {"path": True, "rollout": False}
    assert keeps_states(RewardGradient(route={"kind": "one_step"})) and not keeps_states(ClippedRatio())
    with pytest.raises(ValidationError, match=r"noise='path' has states at the rollout's levels alone"):
        Forward(rule=Weighted(), noise="path")


def test_own_noise_has_no_error_on_a_straight_flow_where_fresh_noise_has_the_variance(linear_policy):
    # A flow that moves all noise by the same way is straight: x0 = noise - 2, v = 2.
    class Straight(linear_policy):
        def velocity(self, x, sigma, condition):
            return torch.full_like(x, 2.0)

    forest = forest_of(Straight(), ROOTS)
    objective = Forward(rule=Weighted(), surrogate=Regression(weighting="uniform"))
    errors = {}
    for noise in ("rollout", "fresh"):
        rows = samples(forest, ones(forest), Stratified(), seed=0, iteration=4, noise=noise)
        x, _ = objective.inputs(rows)
        errors[noise] = objective.measure(rows, x, torch.full_like(x, 2.0), {})["error"]
    assert errors["rollout"].max() < 1e-10
    assert errors["fresh"].mean() > 0.5  # the difference of two noises has variance 2


def test_a_grid_draws_one_level_from_each_run_of_its_noisy_part():
    draw = Grid(num_sigmas=3, noisy_fraction=0.75, skip=1)
    assert list(draw.candidates(8)) == [1, 2, 3, 4, 5]
    drawn = torch.stack([draw.draw(Address(0, "sigmas", i), GRID) for i in range(300)])
    seen = [sorted(set(drawn[:, i].tolist()), reverse=True) for i in range(3)]
    assert seen == [GRID[1:3].tolist(), GRID[3:5].tolist(), GRID[5:6].tolist()]
    share = (drawn[:, 0] == GRID[1]).float().mean()
    assert abs(share - 0.5) < 0.1
    assert torch.equal(Grid(num_sigmas=8).draw(Address(0, "sigmas"), GRID), GRID)
    assert len(Grid(noisy_fraction=0.9).candidates(10)) == 9


def test_the_grid_of_a_sample_is_that_of_its_rollout(linear_policy):
    forest = forest_of(linear_policy(), ROOTS)
    rows = samples(forest, ones(forest), Grid(num_sigmas=3), seed=0, iteration=4)
    levels = Rollout(plan=Deterministic(), group_size=2, steps=3).sigmas()[:-1]
    assert_close(rows.sigma.view(4, 3), levels.expand(4, 3))


def test_logit_normal_levels_have_normal_logits():
    draw = LogitNormal(num_sigmas=4, mean=0.5, std=0.7)
    logits = torch.cat([draw.draw(Address(0, "sigmas", i), GRID) for i in range(1000)]).logit()
    assert abs(logits.mean() - 0.5) < 0.05 and abs(logits.std() - 0.7) < 0.05  # standard error .011
    plain, shifted = (LogitNormal(shift=s).draw(Address(0, "sigmas"), GRID) for s in (1.0, 3.0))
    assert_close(shifted, 3 * plain / (1 + 2 * plain))


def test_logit_normal_levels_have_a_floor():
    free, held = (LogitNormal(num_sigmas=200, shift=0.1, sigma_min=m) for m in (0.0, 0.1))
    drawn = free.draw(Address(0, "sigmas"), GRID)
    assert 0 < (drawn < 0.1).sum() < 200
    assert_close(held.draw(Address(0, "sigmas"), GRID), drawn.maximum(torch.tensor(0.1)))
