import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from thalweg.core.forest import Child
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.flow import CPS, DanceSDE, DPMSolver, DPMSolverSDE, FlowSDE, Precise, Uniform
from thalweg.rollout import (
    AllSteps,
    Branch,
    Candidates,
    Deterministic,
    Rollout,
    Root,
    Tree,
    Window,
    grow,
)
from thalweg.rollout.finish import Finish

PROMPTS = (Prompt("left", {"shift": -1.0}), Prompt("right", {"shift": 2.0}))
SEED, ITERATION = 7, 3
ALL = Rollout(plan=AllSteps(), group_size=3, steps=5, kernel=FlowSDE())
BRANCH = Rollout(
    plan=Branch(num_branch_steps=2, last_step=3), group_size=8, seed_groups=2, steps=6, kernel=FlowSDE()
)


def with_(rollout: Rollout, **changes) -> Rollout:
    return Rollout(**{**dict(rollout), **changes})


def roots_of(rollout: Rollout, slots=(0, 1)) -> list[Root]:
    return [
        Root(prompt_slot=slot, seed_group=group, number=slot * rollout.num_roots + group, condition=slot)
        for slot in slots
        for group in range(rollout.num_roots)
    ]


def grown(policy, rollout, roots=None, *, seed=SEED, iteration=ITERATION, prompts=PROMPTS):
    return grow(policy, prompts, roots or roots_of(rollout), rollout, seed=seed, iteration=iteration)


def initial(slot: int, group: int) -> torch.Tensor:
    return Address(SEED, "initial", ITERATION, slot, group).normal((3,))


def drawn(slot: int, group: int, step: int, path=()) -> torch.Tensor:
    return Address(SEED, "transition", ITERATION, slot, group, path, step).normal((3,))


def velocity(x: torch.Tensor, sigma: float, shift: float) -> torch.Tensor:
    """The flow of N(shift, 1/4): E[ε - x0 | x]."""
    variance = (1 - sigma) ** 2 / 4 + sigma**2
    return (sigma - (1 - sigma) / 4) / variance * (x - (1 - sigma) * shift) - shift


def euler(x: torch.Tensor, sigmas: list[float], shift: float) -> torch.Tensor:
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * velocity(x, sigma, shift)
    return x


def flow_sde(x: torch.Tensor, sigma: float, sigma_next: float, shift: float, a=0.7):
    """Mean and std of Flow-GRPO's step in the form the authors code it."""
    delta, v = sigma - sigma_next, velocity(x, sigma, shift)
    g2 = a**2 * sigma / (1 - (sigma_next if sigma == 1 else sigma))
    mean = x * (1 - g2 * delta / (2 * sigma)) - v * delta * (1 + g2 * (1 - sigma) / (2 * sigma))
    return mean, math.sqrt(g2 * delta)


def same(one, other) -> None:
    """Two forests with equal states, log-probs and identities."""
    for a, b in zip(one.levels, other.levels, strict=True):
        for name in ("parent", "trained", "k", "std", "latents", "row", "depth"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert_close(a.log_prob, b.log_prob, equal_nan=True, rtol=0, atol=0)
    for name, column in vars(one.leaves).items():
        assert torch.equal(column, getattr(other.leaves, name)), name


def test_a_chain_follows_the_published_step_with_the_noise_at_its_address(linear_policy):
    forest, sigmas = grown(linear_policy(), ALL), ALL.sigmas().tolist()
    for row, (slot, group) in enumerate([(s, g) for s in (0, 1) for g in range(3)]):
        x, shift = initial(slot, group), PROMPTS[slot].metadata["shift"]
        assert_close(forest.levels[0].latents[row], x)
        for step in range(4):
            mean, std = flow_sde(x, sigmas[step], sigmas[step + 1], shift)
            x = mean + std * drawn(slot, group, step)
            level = forest.levels[step + 1]
            assert_close(level.latents[row], x)
            expected = torch.distributions.Normal(mean, std).log_prob(x).mean()
            assert_close(level.log_prob[row], expected, atol=1e-5, rtol=1e-4)
            assert level.std[row].item() == pytest.approx(std)
        assert_close(forest.latents[row], euler(x, sigmas[4:], shift), atol=1e-5, rtol=1e-4)
        assert forest.levels[5].log_prob[row].isnan() and forest.levels[5].std[row] == 0


def test_leaves_say_which_prompt_and_noise_they_come_from(linear_policy):
    forest = grown(linear_policy(), ALL)
    assert forest.leaves.prompt_slot.tolist() == [0, 0, 0, 1, 1, 1]
    assert forest.leaves.seed_group.tolist() == [0, 1, 2, 0, 1, 2]
    assert forest.leaves.fork_step.tolist() == [-1] * 6
    assert [prompt.text for prompt in forest.leaf_prompts] == ["left"] * 3 + ["right"] * 3
    assert len(set(forest.leaves.sample.tolist())) == 6


@pytest.mark.parametrize("kernel", [FlowSDE(noise_level=1e-6), DanceSDE(noise_level=1e-6)])
def test_without_noise_a_drawn_rollout_is_the_euler_ode(kernel, linear_policy):
    forest, sigmas = grown(linear_policy(), with_(ALL, kernel=kernel)), ALL.sigmas().tolist()
    ode = with_(ALL, plan=Deterministic(), kernel=None)
    for row, (slot, group) in enumerate([(s, g) for s in (0, 1) for g in range(3)]):
        expected = euler(initial(slot, group), sigmas, PROMPTS[slot].metadata["shift"])
        assert_close(forest.latents[row], expected, atol=3e-5, rtol=1e-4)
        assert_close(grown(linear_policy(), ode).latents[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [FlowSDE(), DanceSDE(), CPS(), Precise(), DPMSolverSDE()])
def test_a_window_of_all_steps_gives_the_samples_of_all_steps(kernel, linear_policy):
    everything = with_(ALL, kernel=kernel)
    window = with_(everything, plan=Window(size=4))
    same(grown(linear_policy(), everything), grown(linear_policy(), window))


def test_outside_its_window_a_rollout_is_the_ode(linear_policy):
    rollout = with_(ALL, plan=Window(size=2, start=1, move="fixed"), steps=6)
    forest, sigmas = grown(linear_policy(), rollout), rollout.sigmas().tolist()
    for row, (slot, group) in enumerate([(s, g) for s in (0, 1) for g in range(3)]):
        shift = PROMPTS[slot].metadata["shift"]
        entry = euler(initial(slot, group), sigmas[:2], shift)
        assert_close(forest.levels[1].latents[row], entry, atol=1e-5, rtol=1e-4)
        left = forest.levels[3].latents[row]
        assert_close(forest.latents[row], euler(left, sigmas[3:], shift), atol=1e-5, rtol=1e-4)
    assert [bool(level.trained.any()) for level in forest.levels] == [False] * 2 + [True] * 2 + [False] * 3


def test_a_branch_is_one_drawn_step_between_deterministic_ones(linear_policy):
    forest, sigmas = grown(linear_policy(), BRANCH), BRANCH.sigmas().tolist()
    steps = sorted(set(forest.leaves.fork_step.tolist()))
    assert len(steps) == 2 and len(forest.leaves) == 16
    expected = {}
    for slot, group, step in [(s, g, b) for s in (0, 1) for g in (0, 1) for b in steps]:
        shift = PROMPTS[slot].metadata["shift"]
        for child in (0, 1):
            before = euler(initial(slot, group), sigmas[: step + 1], shift)
            mean, std = flow_sde(before, sigmas[step], sigmas[step + 1], shift)
            x = mean + std * drawn(slot, group, step, (child,))
            expected.setdefault((slot, group, step), []).append(euler(x, sigmas[step + 1 :], shift))
    leaves = forest.leaves
    keys = zip(
        leaves.prompt_slot.tolist(), leaves.seed_group.tolist(), leaves.fork_step.tolist(), strict=True
    )
    for latents, key in zip(forest.latents, keys, strict=True):
        assert_close(latents, expected[key].pop(0), atol=1e-5, rtol=1e-4)
    assert not any(expected.values())
    assert forest.levels[-1].depth.tolist() == [1] * 16


def test_a_branch_factor_of_one_gives_the_chain(linear_policy):
    branch = with_(BRANCH, plan=Branch(num_branch_steps=1, last_step=2), seed_groups=8)
    step = branch.layout(SEED, ITERATION)
    at = next(i for i, row in enumerate(step) if any(child.trained for child in row[0]))
    chain = with_(branch, plan=Window(size=1, start=at, move="fixed"))
    same(grown(linear_policy(), branch), grown(linear_policy(), chain))


def test_a_tree_that_forks_into_one_is_a_chain(linear_policy):
    same(grown(linear_policy(), with_(ALL, plan=Tree(branching=1))), grown(linear_policy(), ALL))


def test_a_tree_that_forks_once_is_a_group_that_shares_its_initial_noise(linear_policy):
    tree, group = with_(ALL, plan=Tree(branching=3, forks=(0,)), seed_groups=1), with_(ALL, seed_groups=1)
    same(grown(linear_policy(), tree), grown(linear_policy(), group))


def test_candidates_hang_on_a_chain_that_is_an_honest_sample(linear_policy):
    forest = grown(linear_policy(), with_(ALL, plan=Candidates(num_candidates=3)))
    assert [len(level.parent) for level in forest.levels] == [6, 18, 18, 18, 18, 6]
    assert len(forest.leaves) == 6
    x = initial(1, 2)
    for step, (sigma, sigma_next) in enumerate(pairwise(ALL.sigmas().tolist()[:5])):
        mean, std = flow_sde(x, sigma, sigma_next, 2.0)
        level, went = forest.levels[step + 1], (0,) * step
        for child in range(3):
            expected = mean + std * drawn(1, 2, step, (*went, child))
            assert_close(level.latents[15 + child], expected, atol=1e-5, rtol=1e-4)
        x = mean + std * drawn(1, 2, step, (*went, 0))
    ends = torch.cat([level.end for level in forest.levels])
    assert len(set(ends[ends >= 0].tolist())) == 6 + 6 * 4 * 2  # every end has a number of its own


def test_the_step_of_a_fork_is_drawn_and_scored_with_its_own_spread_and_noise(linear_policy):
    plan = Tree(branching=2, forks=(0, 2), fork_spread=4.0, noise_growth=0.5)
    forest = grown(linear_policy(), with_(ALL, plan=plan, group_size=4, seed_groups=1))
    sigmas, path = ALL.sigmas().tolist(), ()
    x, shift = initial(1, 0), 2.0
    # Noise 1 at the first fork and after it, 1.5 from the second; the spread at forks alone.
    for step, (factor, spread) in enumerate([(1, 4), (1, 1), (1.5, 4), (1.5, 1)]):
        mean, std = flow_sde(x, sigmas[step], sigmas[step + 1], shift, a=0.7 * factor)
        path = (*path, 1) if step in (0, 2) else path
        x = mean + spread * std * drawn(1, 0, step, path)
        level = forest.levels[step + 1]
        assert_close(level.latents[-1], x, atol=1e-5, rtol=1e-4)
        assert level.std[-1].item() == pytest.approx(spread * std, rel=1e-5)
        expected = torch.distributions.Normal(mean, spread * std).log_prob(x).mean()
        assert_close(level.log_prob[-1], expected, atol=1e-5, rtol=1e-4)


def test_members_of_a_seed_group_share_their_initial_noise_and_nothing_later(linear_policy):
    shared = grown(linear_policy(), with_(ALL, seed_groups=1))
    assert [len(level.parent) for level in shared.levels] == [2, 6, 6, 6, 6, 6]
    assert_close(shared.levels[0].latents, torch.stack([initial(0, 0), initial(1, 0)]))
    noises = shared.levels[1].latents[:3]
    assert not torch.isclose(noises[0], noises[1]).any() and not torch.isclose(noises[1], noises[2]).any()
    assert shared.leaves.seed_group.tolist() == [0] * 6
    assert shared.leaves.fork_step.tolist() == [0] * 6


def test_siblings_draw_from_paths_of_their_own_for_all_their_steps(linear_policy):
    forest, sigmas = grown(linear_policy(), with_(ALL, seed_groups=1)), ALL.sigmas().tolist()
    for child in range(3):
        x = initial(1, 0)
        for step in range(4):
            mean, std = flow_sde(x, sigmas[step], sigmas[step + 1], 2.0)
            x = mean + std * drawn(1, 0, step, (child,))
        assert_close(forest.levels[4].latents[3 + child], x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rollout", [ALL, with_(ALL, seed_groups=1), BRANCH])
def test_the_forest_does_not_depend_on_how_roots_are_split(rollout, linear_policy):
    roots = roots_of(rollout)
    whole = grown(linear_policy(), rollout)
    found = {}
    for part in (roots[:1], roots[1:]):
        forest = grown(linear_policy(), rollout, part)
        for number, latents in zip(forest.leaves.sample.tolist(), forest.latents, strict=True):
            found[number] = latents
    assert sorted(found) == sorted(whole.leaves.sample.tolist()) and len(found) == len(whole.leaves)
    for number, latents in zip(whole.leaves.sample.tolist(), whole.latents, strict=True):
        assert torch.equal(found[number], latents)


def test_the_order_of_roots_permutes_the_leaves(linear_policy):
    roots = roots_of(ALL)
    order = [4, 0, 5, 2, 1, 3]
    forest, permuted = grown(linear_policy(), ALL), grown(linear_policy(), ALL, [roots[i] for i in order])
    assert torch.equal(permuted.latents, forest.latents[order])
    assert permuted.leaves.sample.tolist() == forest.leaves.sample[order].tolist()


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_no_pass_is_larger_than_the_micro_batch_and_results_stay(micro_batch, linear_policy):
    policy = linear_policy()
    same(grown(policy, with_(BRANCH, micro_batch=micro_batch)), grown(linear_policy(), BRANCH))
    assert max(policy.batches) == micro_batch


def test_the_micro_batch_changes_a_networks_samples_by_rounding_only(tiny_policy, prompts):
    rollout = with_(BRANCH, group_size=4)
    together, apart = (
        grown(tiny_policy(), with_(rollout, micro_batch=size), prompts=prompts).latents for size in (64, 1)
    )
    assert_close(together, apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("rollout", "states"),
    [
        # Each sample keeps the 3 states around its 2 trained steps, and its leaf.
        (with_(ALL, plan=Window(size=2, start=1, move="fixed")), 6 * 4),
        # One initial noise a prompt: the state before the window is shared.
        (with_(ALL, plan=Window(size=2, start=1, move="fixed"), seed_groups=1), 2 * 1 + 6 * 3),
        # Each of 4 trunks keeps 2 states before its forks; each of 16 branches one after, and its leaf.
        (with_(BRANCH, plan=Branch(num_branch_steps=2, last_step=1)), 4 * 2 + 16 * 2),
        (with_(ALL, plan=Deterministic(), kernel=None), 6),
    ],
)
def test_stored_states_grow_with_trained_steps_and_not_with_all_steps(rollout, states, linear_policy):
    for steps in (5, 20):
        forest = grown(linear_policy(), with_(rollout, steps=steps))
        assert sum(len(level.latents) for level in forest.levels) == states


def test_a_state_is_rounded_to_what_the_network_will_see_before_it_is_scored(linear_policy):
    policy = linear_policy()
    policy.latent_dtype = torch.bfloat16
    forest, sigmas = grown(policy, ALL), ALL.sigmas().tolist()
    for level in forest.levels:
        assert torch.equal(level.latents, level.latents.bfloat16().float())
    x, x_next = forest.levels[1].latents[4], forest.levels[2].latents[4]
    mean, std = flow_sde(x, sigmas[1], sigmas[2], 2.0)
    expected = torch.distributions.Normal(mean, std).log_prob(x_next).mean()
    assert_close(forest.levels[2].log_prob[4], expected, atol=1e-5, rtol=1e-4)


def test_a_multistep_solver_remembers_through_the_window(linear_policy):
    rollout = with_(
        ALL,
        plan=Window(size=1, start=2, move="fixed"),
        steps=6,
        solver=DPMSolver(),
        schedule=Uniform(),
    )
    forest, sigmas = grown(linear_policy(), rollout), rollout.sigmas().tolist()
    x, solver, memory = initial(1, 2)[None], DPMSolver(), None
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = velocity(x, sigma, 2.0)
        if step == 2:
            memory = solver.observe(x, v, sigma)
            mean, std = flow_sde(x, sigma, sigma_next, 2.0)
            x = mean + std * drawn(1, 2, step)
        else:
            x, memory = solver.step(x, v, sigma, sigma_next, memory)
    assert_close(forest.latents[5], x[0], atol=1e-5, rtol=1e-4)


def test_memory_of_a_solver_follows_the_branches(linear_policy):
    def leaves(rollout):
        forest = grown(linear_policy(), rollout)
        identity = [column.tolist() for column in vars(forest.leaves).values()][:3]
        return {key: x for *key, x in zip(*identity, forest.latents, strict=True) for key in [tuple(key)]}

    rollout = with_(BRANCH, solver=DPMSolver(), seed_groups=1, group_size=4)
    for key, latents in leaves(with_(rollout, kernel=FlowSDE(noise_level=1e-6))).items():
        step = key[2]
        x, sigmas, memory = initial(*key[:2])[None], rollout.sigmas().tolist(), None
        for at, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            v = velocity(x, sigma, PROMPTS[key[0]].metadata["shift"])
            x_next, memory = DPMSolver().step(x, v, sigma, sigma_next, memory)
            x = x + (sigma_next - sigma) * v if at == step else x_next
        assert_close(latents, x[0], atol=3e-5, rtol=1e-4)


def test_the_weights_that_the_rollout_names_act_in_it_alone(linear_policy):
    policy = linear_policy()
    policy.weights.add("old")
    with torch.no_grad():
        policy.bias += 1.0
    acting = grown(policy, with_(ALL, weights="old"))
    same(acting, grown(linear_policy(), ALL))
    assert policy.bias.tolist() == [1.0, 1.0, 1.0]
    assert not torch.isclose(grown(policy, ALL).latents, acting.latents).any()


@pytest.mark.parametrize("change", [{"seed": SEED + 1}, {"iteration": ITERATION + 1}])
def test_another_seed_or_iteration_draws_everything_anew(change, linear_policy):
    one, other = grown(linear_policy(), ALL), grown(linear_policy(), ALL, **change)
    for a, b in zip(one.levels, other.levels, strict=True):
        assert not torch.isclose(a.latents, b.latents).any()


def test_a_rollout_builds_no_graph(linear_policy):
    assert not grown(linear_policy(), ALL).latents.requires_grad


class OneIsTrained(Part):
    """A plan of a user's own: the first step is drawn for all leaves and trained for one."""

    kind: Literal["test_grow:OneIsTrained"] = "test_grow:OneIsTrained"
    stochastic: bool = True

    def layout(self, num_steps, leaves, draw):
        drawn, trained = Child(stochastic=True), Child(stochastic=True, trained=True)
        onwards = {0: (Child(stochastic=False),)}
        return ({0: (trained, *(drawn,) * (leaves - 1))}, *[onwards] * (num_steps - 1))


def test_a_drawn_step_need_not_be_trained_and_then_has_no_log_prob(linear_policy):
    shared = with_(ALL, seed_groups=1)
    forest = grown(linear_policy(), with_(shared, plan=OneIsTrained()))
    reference = grown(linear_policy(), with_(shared, plan=Window(size=1, start=0, move="fixed")))
    assert torch.equal(forest.latents, reference.latents)
    after, expected = forest.levels[1], reference.levels[1]
    assert after.trained.tolist() == [True, False, False] * 2
    assert after.log_prob.isnan().tolist() == [False, True, True] * 2
    assert torch.equal(after.log_prob[[0, 3]], expected.log_prob[[0, 3]])
    assert torch.equal(after.std, expected.std)
    assert torch.equal(after.latents, expected.latents[[0, 3]])


def test_other_weights_take_the_last_steps(linear_policy):
    policy = linear_policy()
    policy.weights.add("base")
    with torch.no_grad():
        policy.bias.fill_(1.0)
    rollout = Rollout(plan=Deterministic(), group_size=1, steps=4, schedule=Uniform())
    finish = with_(rollout, finish=Finish(weights="base", steps=1))
    roots = roots_of(rollout)
    whole, finished = (grown(policy, r, roots).latents for r in (rollout, finish))
    base = grown(policy, with_(rollout, weights="base"), roots).latents
    # Euler's last step from 1/4 is x - v/4: without the bias of 1 it ends 1/4 higher.
    assert_close(finished - whole, torch.full((2, 3), 0.25))
    assert not torch.allclose(finished, base, atol=0.1)
    assert policy.weights._active == "policy"


def test_weights_that_finish_leave_drawn_steps_alone():
    with pytest.raises(ValidationError, match=r"finish.steps=2 reach step 3, which is drawn .* give fewer"):
        with_(ALL, finish=Finish(weights="base", steps=2))
    assert with_(ALL, finish=Finish(weights="base", steps=1)).weights_at(3, 5) == "policy"
    with pytest.raises(ValidationError, match=r"finish.steps=4: of steps=4 the first ones stay"):
        Rollout(plan=Deterministic(), group_size=1, steps=4, finish=Finish(weights="base", steps=4))
