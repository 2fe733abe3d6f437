"""Methods that are another one at some value of their numbers: the same rows, states or gradients."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.noise import Address
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt, Samples, Transitions
from thalweg.credit import GroupCredit, ProcessCredit, Selection, TreeCredit
from thalweg.flow import DanceSDE, FlowSDE, Uniform
from thalweg.objectives import ClippedRatio
from thalweg.objectives.advantage_map import AdvantageMap
from thalweg.objectives.correction import Correction
from thalweg.objectives.rules import Ratio, Weighted
from thalweg.objectives.sigma_draw import Grid
from thalweg.rollout import AllSteps, Deterministic, Guidance, Perturbation, Rollout, Root, Tree, grow
from thalweg.training.backward import backward, measure, on_training_path
from thalweg.training.collect import collect
from thalweg.training.recipe.load import load_recipe
from thalweg.training.replay import Replay, ReplayBuffer
from thalweg.training.weight_rules import add_named
from training.small_runs import small

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))
STEPS = {"steps": 5, "kernel": FlowSDE()}
CHAINS = Rollout(plan=AllSteps(), group_size=4, **STEPS)
TREE = Rollout(plan=Tree(branching=2, forks=(0, 2)), group_size=4, seed_groups=1, **STEPS)
RANDOM = torch.tensor([0.3, -1.2, 0.5, 0.9, 2.0, -0.4, 0.1, 0.8])


def grown(policy, rollout, prompts=PROMPTS, **options):
    count = rollout.num_roots
    roots = [Root(slot, group, slot * count + group, slot) for slot in (0, 1) for group in range(count)]
    return grow(policy, prompts, roots, rollout, seed=0, iteration=0, **options)


def assert_same_states(one, other, **room) -> None:
    for a, b in zip(one.levels, other.levels, strict=True):
        assert_close(a.latents, b.latents, **({"rtol": 0, "atol": 0} | room))
        assert_close(a.log_prob, b.log_prob, equal_nan=True, **({"rtol": 0, "atol": 0} | room))


def assert_same_rows(one: Transitions, other: Transitions) -> None:
    for name, column in vars(one).items():
        assert column is None or torch.equal(column, getattr(other, name)), name


def assigned(credit, forest, rewards=RANDOM, steps=None):
    return credit.assign(forest, Scores({"r": rewards}, steps or {}), {"r": 1.0, "p": 1.0}, Processes())


def gradient(objective, policy, rows, condition) -> torch.Tensor:
    policy.bias.grad = None
    backward(objective, policy, rows, condition, 1000, 1 / len(rows))
    return policy.bias.grad


@pytest.mark.parametrize("normalize_at", ["leaves", "step"])
@pytest.mark.parametrize("aggregate", ["mean", "max", "log_prob"])
def test_tree_credit_of_one_fork_is_group_credit(normalize_at, aggregate, linear_policy):
    forest = grown(linear_policy(), Rollout(plan=AllSteps(), group_size=4, seed_groups=1, **STEPS))
    tree = assigned(TreeCredit(normalize_at=normalize_at, aggregate=aggregate), forest)
    group = assigned(GroupCredit(), forest)
    assert_close(tree.leaves, group.leaves)
    for found, expected in zip(tree.levels[1:], group.levels[1:], strict=True):
        assert_close(found, expected)


def test_process_credit_of_the_outcome_alone_is_group_credit(linear_policy):
    forest = grown(linear_policy(), CHAINS)
    found = assigned(ProcessCredit(process_weight=0), forest)
    for one, other in zip(found.levels[1:], assigned(GroupCredit(), forest).levels[1:], strict=True):
        assert_close(one, other)


def test_the_best_and_worst_of_a_group_as_many_as_it_has_are_all(linear_policy):
    forest = grown(linear_policy(), CHAINS)
    rows = ClippedRatio().experience(forest, assigned(GroupCredit(), forest), seed=0, iteration=0)
    assert_same_rows(
        Selection(best_of=4).select(rows, seed=0, iteration=0), Selection().select(rows, seed=0, iteration=0)
    )
    fewer = Selection(best_of=2).select(rows, seed=0, iteration=0)
    # Of each prompt the best and the worst: rewards .9 and -1.2, 2.0 and -.4.
    assert set(fewer.sample.tolist()) == {forest.leaves.sample[i].item() for i in (1, 3, 4, 5)}


def test_one_variant_of_a_prompt_and_the_first_of_several_are_its_own(tiny_policy, prompts):
    host = Rollout(plan=Deterministic(), group_size=4, steps=5, weights="old")
    forests = []
    for variants in (None, 1, 2):
        policy = tiny_policy()
        policy.weights.add("old")
        with torch.no_grad():  # the policy has left the weights that act
            for values in policy.weights.parameters.values():
                values += 0.1
        vary = None if variants is None else Perturbation(variants=variants, reach=0.8)
        rollout = host.model_copy(update={"perturbation": vary})
        forests.append(grown(policy, rollout, prompts[:2]).latents)
    own, one, two = forests
    assert_close(one, own, rtol=0, atol=1e-6)
    assert_close(two[0::2], own[0::2], rtol=0, atol=1e-5)
    assert not torch.isclose(two[1::2], own[1::2]).all(1).any()


def test_looking_at_as_many_noises_as_are_drawn_changes_no_sample(tiny_policy, prompts):
    found = []
    for overrides in ({"rollout.explore.pool": 4}, {"rollout.explore": None}):
        recipe, policy = small("sol-rl", overrides), tiny_policy()
        add_named(policy.weights, recipe.weights)
        found.append(collect(recipe, policy, prompts[:2], Processes(), iteration=0).forest)
    assert_same_states(*found)
    assert found[0].leaves.sample.tolist() == found[1].leaves.sample.tolist()


def test_guidance_without_strength_is_the_host(linear_policy):
    def value(x, sigma, prompts):
        return x.square().flatten(1).sum(1)

    host = Rollout(plan=AllSteps(), group_size=4, steps=5, kernel=DanceSDE())
    guided = host.model_copy(update={"guidance": Guidance(reward="r", strength=1e-12)})
    one, other = grown(linear_policy(), guided, value=value), grown(linear_policy(), host)
    assert_same_states(one, other, atol=1e-6)


def test_engines_that_agree_are_not_corrected_and_nothing_is_rejected(linear_policy):
    policy = linear_policy()
    policy.weights.add("engine")
    forest = grown(policy, CHAINS.model_copy(update={"weights": "engine"}))
    objective = ClippedRatio(
        old_log_prob="recompute", correction=Correction(limit=2.0, accept=(0.999, 1.001), num_elements=3)
    )
    rows = objective.experience(forest, assigned(GroupCredit(), forest), seed=0, iteration=0)
    corrected, metrics = on_training_path(objective, policy, rows, forest.condition, 8, Processes())
    assert_same_rows(corrected, rows)
    assert metrics == {"correction/gap": 0, "correction/rejected": 0}


def moved_rows(linear_policy, objective, rollout=CHAINS):
    """Rows of a policy that has gone on since."""
    policy = linear_policy()
    forest = grown(policy, rollout, keep_mean=objective.keeps_mean)
    rows = objective.experience(forest, assigned(GroupCredit(), forest), seed=0, iteration=0)
    with torch.no_grad():
        policy.bias += torch.tensor([0.1, -0.2, 0.05])
    return policy, rows, forest.condition


def test_an_endless_divergence_range_is_the_policy_gradient_without_a_clip(linear_policy):
    free = ClippedRatio(trust="divergence", divergence_range=1e9)
    policy, rows, condition = moved_rows(linear_policy, free)
    found = gradient(free, policy, rows, condition)
    assert_close(found, gradient(ClippedRatio(clip_range=1e9), policy, rows, condition))
    narrow = ClippedRatio(trust="divergence", divergence_range=1e-9)
    assert not torch.isclose(gradient(narrow, policy, rows, condition), found).any()


def test_bounds_that_do_not_follow_the_advantage_are_the_plain_clip(linear_policy):
    following = ClippedRatio(clip_range=0.01, clip_range_max=0.01)
    policy, rows, condition = moved_rows(linear_policy, following, TREE)
    plain = gradient(ClippedRatio(clip_range=0.01), policy, rows, condition)
    assert_close(gradient(following, policy, rows, condition), plain)
    still = Tree(branching=2, forks=(0, 2), noise_growth=0.0, fork_spread=1.0)
    same = Rollout(plan=still, group_size=4, seed_groups=1, **STEPS)
    assert_same_states(grown(linear_policy(), same), grown(linear_policy(), TREE))


def test_v_grpo_of_all_levels_without_a_clip_is_epg_with_one_ratio_a_sample(linear_policy):
    # On the policy of the rollout the ratio is 1, and the two are the same; later V-GRPO weighs all of a
    # sample's levels by the ratio of their mean error, which each sample's own rows show.
    alike = {"sigmas": Grid(num_sigmas=5), "shared_in_group": True, "pulls": (), "advantage": AdvantageMap()}
    endless = load_recipe("v-grpo").objective.model_copy(
        update={**alike, "rule": Ratio(clip_range=1e9, spans="sample")}
    )
    epg = load_recipe("elbo-epg").objective.model_copy(update=alike)
    assert isinstance(epg.rule, Weighted) and epg.rule.log_ratio_weight == 0
    assert epg.surrogate == endless.surrogate
    policy = linear_policy((3,), torch.float64)
    policy.weights.add("old")
    forest = grown(policy, Rollout(plan=Deterministic(), group_size=4, steps=5))
    rows = endless.experience(forest, assigned(GroupCredit(), forest), seed=0, iteration=0)
    assert_close(rows.sigma.view(8, 5), forest.sigmas[:, :-1])  # every level of the rollout, for all
    columns = {n: c.double() if c.is_floating_point() else c for n, c in vars(rows).items() if c is not None}
    rows = Samples(**columns)
    found = gradient(endless, policy, rows, forest.condition)
    assert found.abs().max() > 1e-3
    assert_close(found, gradient(epg, policy, rows, forest.condition), rtol=1e-10, atol=1e-12)

    with torch.no_grad():
        policy.bias += torch.tensor([0.3, -0.4, 0.2])
    plain = epg.model_copy(update={"rule": Weighted(old="old", use_ratio=False)})
    for sample in rows.sample.unique():
        own = rows.index(rows.sample == sample)
        with torch.no_grad():
            scalars = measure(plain, policy, own, forest.condition)
        ratio = float((scalars["old_error"] - scalars["error"]).mean().exp())
        assert abs(ratio - 1) > 1e-3
        expected = ratio * gradient(plain, policy, own, forest.condition)
        assert_close(gradient(endless, policy, own, forest.condition), expected, rtol=1e-9, atol=1e-12)


def replayed(rows, condition):
    """All rows, as they come back out of a buffer."""
    buffer = ReplayBuffer()
    buffer.admit(rows, condition, Replay(quantile=0.0, capacity=100_000), 0, Processes())
    again, given = buffer.draw(100_000, Address(0, "selection"), Processes(), 0)
    return again, given


def test_replay_of_the_iterations_own_samples_is_the_gradient_on_policy(linear_policy):
    policy = linear_policy()
    forest = grown(policy, CHAINS)
    objective = ClippedRatio(old_log_prob="recompute", correction=Correction(num_elements=3))
    rows = objective.experience(forest, assigned(GroupCredit(), forest), seed=0, iteration=0)
    again, given = replayed(rows, forest.condition)
    corrected, _ = on_training_path(objective, policy, again, given, 8, Processes())
    expected = gradient(ClippedRatio(), policy, rows, forest.condition)
    assert_close(gradient(objective, policy, corrected, given), expected)


@pytest.mark.parametrize("elements", [1, 2])
def test_replay_of_an_older_policy_is_the_gradient_on_policy_once_it_is_corrected(elements, linear_policy):
    # Reward sum of x², data N(0, 1/4). The chain is affine, x' = c x + s z - J theta, so with C the sum of
    # J_j G_j over drawn steps their gradient of E x_N² is 2 theta C². The last, deterministic step of a
    # stored sample is that of the older policy.
    kernel = FlowSDE(noise_level=1.0)
    rollout = Rollout(plan=AllSteps(), group_size=6000, steps=4, kernel=kernel, schedule=Uniform())
    policy = linear_policy((elements,))
    roots = [Root(0, group, group, 0) for group in range(6000)]
    forest = grow(policy, [Prompt("")], roots, rollout, seed=0, iteration=0)
    reward = forest.latents.square().sum(1)
    theta, drift, factor = 0.4, 0.0, 1.0
    for at in (4, 3, 2, 1):
        sigma, sigma_next = (float(forest.levels[i].sigma[0]) for i in (at - 1, at))
        k = forest.levels[at].k[0].item()
        J = (1 - sigma_next) * sigma - k * (1 - sigma)
        slope = (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)
        drift += J * factor if at < 4 else 0.0
        factor *= 1 - sigma_next + k - J * slope
    expected = -2 * theta * drift**2 / elements  # log-probs are means over elements

    found = {}
    for name, correction in (
        ("corrected", Correction(reduce="sum", limit=1e9, num_elements=elements)),
        ("plain", None),
    ):
        policy.bias.data.zero_()
        objective = ClippedRatio(old_log_prob="recompute", correction=correction)
        # A constant baseline of the older policy; its weighted mean costs no bias.
        rows = objective.experience(
            forest, forest.advantages((reward - reward.mean())[:, None]), seed=0, iteration=0
        )
        rows, given = replayed(
            replace(rows, prompt_slot=torch.zeros_like(rows.prompt_slot)), forest.condition
        )
        policy.bias.data.fill_(theta)
        rows, _ = on_training_path(objective, policy, rows, given, 100_000, Processes())
        policy.bias.grad = None
        backward(objective, policy, rows, given, 100_000, 1 / 6000)
        found[name] = policy.bias.grad.mean().item()
    assert found["corrected"] == pytest.approx(expected, rel=0.25)  # standard error 10 %
    assert abs(found["plain"] - expected) > 0.3 * abs(expected)
