"""Latents of two parts: the model with a sound, and rewards that reach their own part alone."""

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Media, Prompt
from thalweg.credit import GroupCredit, RoutedCredit
from thalweg.evaluation.benchmark import Evaluation
from thalweg.evaluation.measure import measure
from thalweg.flow import Heun, Uniform
from thalweg.models import MiniatureModel, Policy, SoundingModel
from thalweg.models.contract import HasParts
from thalweg.models.miniature.sounding import SoundingPolicy
from thalweg.objectives import Forward
from thalweg.objectives.rules import Implicit
from thalweg.rewards import WorldReward
from thalweg.rollout import Deterministic, Rollout, Root, grow
from thalweg.training.backward import backward
from thalweg.worlds import find_world

ROLLOUT = Rollout(plan=Deterministic(), group_size=4, steps=3)
ROOTS = [Root(slot, group, slot * 4 + group, slot) for slot in (0, 1) for group in range(4)]
GENERATOR = torch.Generator().manual_seed(0)
SEEN, HEARD, BOTH = torch.randn(3, 8, generator=GENERATOR)


@pytest.fixture
def sounding(tiny_policy):
    return lambda: SoundingPolicy(tiny_policy(), SoundingModel(num_audio=4, loudness=0.2))


def grown(policy, prompts):
    return grow(policy, prompts[:2], ROOTS, ROLLOUT, seed=0, iteration=0)


def test_the_base_sounds_as_loud_as_it_says_whatever_the_prompt(sounding, prompts):
    policy = sounding()
    assert isinstance(policy, Policy) and isinstance(policy, HasParts)
    many = [Root(0, group, group, 0) for group in range(400)]
    fine = Rollout(
        plan=Deterministic(), group_size=400, steps=20, schedule=Uniform(), solver=Heun(), micro_batch=400
    )
    wave = grow(policy, prompts[:1], many, fine, seed=0, iteration=0).latents[:, 768:]
    assert float(wave.std()) == pytest.approx(0.2, rel=0.06)  # 1600 numbers: 1.8 %
    assert abs(float(wave.mean())) < 0.02


def test_the_picture_is_that_of_the_model_without_a_sound(sounding, tiny_policy, prompts):
    policy, alone = sounding(), tiny_policy()
    x = torch.randn(4, *policy.latent_shape, generator=GENERATOR)
    sigma = torch.tensor([0.1, 0.4, 0.7, 1.0])
    found = policy.velocity(x, sigma, policy.encode(prompts))
    expected = alone.velocity(x[:, :768].unflatten(1, (3, 16, 16)), sigma, alone.encode(prompts))
    assert_close(found[:, :768].unflatten(1, (3, 16, 16)), expected)
    slope = (sigma - (1 - sigma) * 0.04) / ((1 - sigma) ** 2 * 0.04 + sigma**2)
    assert_close(found[:, 768:], slope[:, None] * x[:, 768:])
    assert policy.passes.evaluations == 4
    made = policy.decode(x)
    assert isinstance(made, Media) and made.frames is not None and made.audio is not None
    assert_close(made.frames[:, 0], alone.decode(x[:, :768].unflatten(1, (3, 16, 16))))
    assert_close(made.audio[:, 0], x[:, 768:].clamp(-1, 1))


def test_accuracy_is_that_of_the_pictures():
    world, judge = find_world("scenes"), WorldReward(world="scenes", strict=True)
    asked = world.held_out_prompts()[::55]  # the same noise begins the latents of both
    found, alone = (
        measure(model.load(), asked, [judge], world, Evaluation(), Processes())["accuracy"]
        for model in (SoundingModel(), MiniatureModel())
    )
    assert 0 < alone < 1
    assert found == alone


def test_named_weights_act_on_both_networks(sounding, prompts):
    policy = sounding()
    policy.weights.add("old")
    with torch.no_grad():
        for values in policy.weights.parameters.values():
            values += 0.1
    x, sigma, here = torch.ones(4, *policy.latent_shape), torch.full((4,), 0.5), policy.encode(prompts)
    with torch.no_grad():
        now = policy.velocity(x, sigma, here)
        with policy.weights.use("old"):
            old = policy.velocity(x, sigma, here)
    assert (now[:, :768] != old[:, :768]).any() and (now[:, 768:] != old[:, 768:]).all()


def test_each_part_hears_its_own_rewards_and_those_of_everyone(sounding, prompts):
    forest = grown(sounding(), prompts)
    scores = Scores({"seen": SEEN, "heard": HEARD, "both": BOTH})
    weights = {"seen": 1.0, "heard": 0.5, "both": 2.0}
    given = RoutedCredit(parts=(("seen",), ("heard",)), limit=None).assign(
        forest, scores, weights, Processes()
    )

    def alone(name):
        return GroupCredit(limit=None).assign(forest, scores, {name: 1.0}, Processes()).leaves[:, 0]

    expected = [alone("seen") + 2 * alone("both"), 0.5 * alone("heard") + 2 * alone("both")]
    assert_close(given.leaves, torch.stack(expected, 1))
    assert given.regions is not None
    picture = (torch.arange(772) < 768).float()
    assert_close(given.regions, torch.stack([picture, 1 - picture]).expand(8, -1, -1))


def gradients(policy, prompts, credit, scores):
    forest = grown(policy, prompts)
    policy.weights.add("old")
    objective = Forward(rule=Implicit())
    given = credit.assign(forest, scores, dict.fromkeys(scores.leaves, 1.0), Processes())
    rows = objective.experience(forest, given, seed=0, iteration=0)
    backward(objective, policy, rows, forest.condition, 1000, 1 / len(rows))
    return {name: p.grad for name, p in policy.weights.parameters.items()}


def test_routed_rewards_train_each_network_as_a_run_of_its_own(sounding, prompts):
    routes = RoutedCredit(parts=(("seen",), ("heard",)))
    found = gradients(sounding(), prompts, routes, Scores({"seen": SEEN, "heard": HEARD}))
    other = gradients(sounding(), prompts, routes, Scores({"seen": SEEN, "heard": -HEARD}))
    for name, slope in found.items():
        if name.startswith("voice."):
            assert_close(other[name], -slope)
        else:  # a picture does not answer for its sound
            assert_close(other[name], slope)
    assert found["voice.to_wave.weight"].abs().max() > 0


def test_parts_that_the_model_does_not_have_are_refused(linear_policy):
    forest = grow(linear_policy(), [Prompt("a"), Prompt("b")], ROOTS, ROLLOUT, seed=0, iteration=0)
    credit = RoutedCredit(parts=(("seen",), ("heard",)))
    with pytest.raises(UserError, match="names 2 parts, and the latents of this model have 1"):
        credit.assign(forest, Scores({"seen": SEEN, "heard": HEARD}), {"seen": 1.0}, Processes())
