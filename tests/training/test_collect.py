import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.rewards import score, score_steps, value_of
from thalweg.rewards.scorer import ScorerReward
from thalweg.rollout import Deterministic, Rollout, grow, rank_agreement
from thalweg.rollout.shares import joined, split
from thalweg.training.collect import agreement, collect, grow_here, judge, roots_of
from thalweg.training.recipe.load import load_recipe
from thalweg.training.weight_rules import add_named
from training.small_runs import small


def explored(tiny_policy, prompts, overrides=()):
    recipe, policy = small("sol-rl", dict(overrides)), tiny_policy()
    add_named(policy.weights, recipe.weights)
    return recipe, policy, collect(recipe, policy, prompts[:2], Processes(), iteration=0)


def test_the_initial_noises_of_the_best_and_the_worst_cheap_samples_are_drawn_again(tiny_policy, prompts):
    recipe, policy, found = explored(tiny_policy, prompts)
    cheap = Rollout(
        plan=Deterministic(),
        group_size=8,
        steps=recipe.rollout.explore.steps,
        schedule=recipe.rollout.schedule,
        solver=recipe.rollout.solver,
        weights="cheap",
    )
    looks = grow(policy, prompts[:2], roots_of(2, 8), cheap, seed=0, iteration=0)
    rewards = score(recipe.rewards, policy.decode(looks.latents), looks.leaf_prompts)["brightness"].view(2, 8)
    order = rewards.argsort(1)
    expected = torch.cat([order[:, :2], order[:, -2:]], 1).sort(1).values
    assert found.forest.leaves.seed_group.view(2, 4).tolist() == expected.tolist()
    assert list(found.looks.values()) == pytest.approx(
        rewards.gather(1, expected).flatten().tolist(), abs=1e-6
    )

    # Drawn again: the same initial noises, all steps, the weights that act.
    own = recipe.rollout.model_copy(update={"explore": None})
    again = grow(
        policy,
        prompts[:2],
        [r for r in roots_of(2, 8) if r.seed_group in expected[r.prompt_slot].tolist()],
        own,
        seed=0,
        iteration=0,
    )
    assert_close(found.forest.latents, again.latents, atol=1e-5, rtol=0)


def test_the_agreement_is_that_of_the_cheap_and_the_whole_samples(tiny_policy, prompts):
    recipe, policy, found = explored(tiny_policy, prompts)
    scores = judge(recipe, policy, found.forest).leaves
    metrics = agreement(found, scores, recipe.rewards, Processes())
    looks = torch.tensor(list(found.looks.values()))
    expected = rank_agreement(looks, scores["brightness"])
    assert metrics == {"explore/rank_agreement": pytest.approx(expected)}
    # The very same samples, looked at in full and drawn again, rank alike.
    same = {"rollout.explore": {"pool": 8, "steps": 8}, "rollout.weights": "policy"}
    recipe, policy, found = explored(tiny_policy, prompts, same)
    scores = judge(recipe, policy, found.forest).leaves
    assert agreement(found, scores, recipe.rewards, Processes()) == {
        "explore/rank_agreement": pytest.approx(1)
    }


def test_states_are_judged_at_their_own_noise_level_for_their_own_prompt(tiny_policy, prompts):
    recipe, policy = small("step-grpo"), tiny_policy()
    forest = collect(recipe, policy, prompts[:2], Processes(), iteration=0).forest
    found = score_steps(recipe.rewards, forest)["scenes_scorer"]
    for level, values in zip(forest.levels, found, strict=True):
        assert values.isfinite().tolist() == level.trained.tolist()
    level, values = forest.levels[3], found[3]
    with torch.no_grad():
        for row in (0, 5, len(values) - 1):
            prompt = prompts[int(forest.roots.prompt_slot[level.root[row]])]
            x = level.latents[level.row[row]][None]
            expected = ScorerReward().score_latents(x, float(level.sigma[row]), [prompt])[0]
            assert values[row].item() == pytest.approx(expected.item(), abs=1e-5)


def test_guidance_climbs_the_reward_it_names():
    recipe = load_recipe("euphonium")
    value = value_of(recipe.rewards, recipe.rollout.guidance.reward)
    assert value.__self__ == next(r for r in recipe.rewards if r.name == "scenes_scorer")


def in_three_shares(recipe, policy, prompts, roots, rollout, iteration):
    """Fulfils `Grows` as workers do, in one process."""
    shares = split(roots, 3)
    if not shares:
        return grow_here(recipe, policy, prompts, roots, rollout, iteration)
    forests = [
        grow_here(recipe, policy, [prompts[row] for row in share.rows], share.roots, rollout, iteration)
        for share in shares
    ]
    return joined(forests, shares, prompts, policy.encode(prompts))


@pytest.mark.parametrize(
    "name",
    [
        "sol-rl",  # looks at more samples than it trains on
        "euphonium",  # climbs the gradient of a reward
        "e2po",  # varies embeddings
        "realalign",  # samples that are given and none drawn
        "diffusion-apo-half-online",  # given and drawn, with their noise
        "draft",  # keeps all states
        "flash-grpo",  # each prompt has a window of its own
    ],
)
def test_whatever_a_recipe_asks_of_its_rollout_can_be_grown_in_shares(name, tiny_policy, prompts):
    recipe, found = small(name, {"rollout.micro_batch": 3}), []
    for grows in (grow_here, in_three_shares):
        policy = tiny_policy()
        add_named(policy.weights, recipe.weights)
        found.append((collect(recipe, policy, prompts[:2], Processes(), 1, grows), policy.passes))
    (one, passes), (other, in_shares) = found
    assert passes == in_shares
    assert (one.looks is None) == (other.looks is None) == (name != "sol-rl")
    assert (one.looks or {}) == pytest.approx(other.looks or {}, abs=1e-5)
    assert_close(one.forest.latents, other.forest.latents, atol=1e-4, rtol=0)
    for a, b in zip(one.forest.levels, other.forest.levels, strict=True):
        assert_close(a.latents, b.latents, atol=1e-4, rtol=0)
        assert torch.equal(a.end, b.end) and torch.equal(a.parent, b.parent)
    assert (one.forest.starts is None) == (other.forest.starts is None)
    if one.forest.starts is not None:
        assert_close(one.forest.starts, other.forest.starts, atol=1e-4, rtol=0)
    assert one.forest.leaf_prompts == other.forest.leaf_prompts
