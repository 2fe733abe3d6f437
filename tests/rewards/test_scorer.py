from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.models.miniature.policy import load_network
from thalweg.rewards import KINDS, Reward
from thalweg.rewards.scorer import ScorerReward, _load
from thalweg.rewards.world import WorldReward
from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe
from thalweg.worlds import WORLDS, find_world
from thalweg.worlds.scenes.drawing import draw
from training.small_runs import metrics_of

SCENES = find_world("scenes")
PROMPTS = SCENES.held_out_prompts()[::3]


@pytest.fixture(scope="module")
def samples():
    """The base's states at σ = 1, 1-1/8 .. 0 for held-out prompts, and which of them end up right."""
    network = load_network(SCENES.weights).eval()
    tokens = SCENES.tokenize([p.text for p in PROMPTS])
    x = torch.randn(len(tokens), *SCENES.image_shape, generator=torch.Generator().manual_seed(5))
    states = [x]
    with torch.no_grad():
        for sigma, sigma_next in pairwise(torch.linspace(1, 0, 9)):
            x = x + (sigma_next - sigma) * network(x, sigma.expand(len(x)), tokens)
            states.append(x)
    images = (x / 2 + 0.5).clamp(0, 1)
    return states, images, WorldReward(strict=True).score(images, PROMPTS).bool()


def auc(scores, right):
    """The share of pairs of a right and a wrong sample that the scores put in order."""
    return (scores[right][:, None] > scores[~right][None]).float().mean().item()


def score_latents(*arguments, **options):
    with torch.no_grad():
        return ScorerReward(**options).score_latents(*arguments)


@pytest.mark.parametrize(("sigma", "floor"), [(0.0, 0.8), (0.25, 0.72), (0.5, 0.62), (0.75, 0.57)])
def test_right_samples_of_unseen_prompts_score_above_wrong_ones_at_every_noise_level(samples, sigma, floor):
    states, _, right = samples
    assert auc(score_latents(states[round(8 * (1 - sigma))], sigma, PROMPTS), right) > floor


def test_a_finished_image_is_scored_as_the_latents_it_was_made_from(samples):
    _, images, right = samples
    scores = ScorerReward().score(images, PROMPTS)
    assert ((scores > 0) & (scores < 1)).all()
    assert auc(scores, right) > 0.8
    assert_close(scores, score_latents(images * 2 - 1, 0.0, PROMPTS))


def test_drawings_are_told_from_drawings_of_another_prompt_of_the_task():
    rng = np.random.default_rng(0)
    drawings = torch.stack([torch.from_numpy(draw(p.metadata["specification"], rng)) for p in PROMPTS])
    images = torch.cat([drawings, drawings.roll(1, 0)]).float()  # tasks come one after the other
    prompts = [*PROMPTS, *PROMPTS]
    right = WorldReward(strict=True).score(images, prompts).bool()
    assert auc(ScorerReward().score(images, prompts), right) > 0.98


def test_probabilities_and_log_odds_are_one_score(samples):
    x = samples[0][4]
    assert_close(score_latents(x, 0.5, PROMPTS, log_odds=True).sigmoid(), score_latents(x, 0.5, PROMPTS))


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_a_small_step_up_the_gradient_raises_nearly_every_score(samples, sigma):
    x = samples[0][round(8 * (1 - sigma))].clone().requires_grad_()
    reward = ScorerReward(log_odds=True)
    before = reward.score_latents(x, sigma, PROMPTS)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    assert gradient.flatten(1).norm(dim=1).min() > 0
    after = score_latents(x.detach() + 0.01 * gradient.sign(), sigma, PROMPTS, log_odds=True)
    assert (after > before).float().mean() > 0.95


@pytest.mark.slow
def test_a_policy_that_climbs_it_is_right_more_often_by_the_exact_judge(tmp_path):
    looks = {"evaluation.every": 75, "evaluation.num_prompts": 300, "evaluation.diversity_prompts": 0}
    folder = train(load_recipe("refl", {"iterations": 75, **looks}), tmp_path / "run")
    before, after = [line["accuracy"] for line in metrics_of(folder) if line["event"] == "eval"]
    assert after > before + 0.03  # .08 higher when it was hardened; before that, lower


def test_a_gradient_reaches_images_and_never_the_weights():
    images = torch.rand(2, *SCENES.image_shape).requires_grad_()
    ScorerReward().score(images, PROMPTS[:2]).sum().backward()
    assert images.grad is not None and (images.grad != 0).any()
    assert not any(p.requires_grad for p in _load("scenes", torch.device("cpu")).parameters())


def test_a_score_is_the_same_every_time_and_in_every_batch(samples):
    x, sigma = samples[0][3][:40], torch.linspace(0, 1, 40)
    together = score_latents(x, sigma, PROMPTS[:40])
    assert torch.equal(score_latents(x, sigma, PROMPTS[:40]), together)
    _load.cache_clear()
    assert torch.equal(score_latents(x, sigma, PROMPTS[:40]), together)
    alone = [score_latents(x[i : i + 1], sigma[i].item(), PROMPTS[i : i + 1]) for i in range(40)]
    assert_close(torch.cat(alone), together, atol=1e-5, rtol=0)


def test_missing_weights_are_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(WORLDS, "scenes", replace(SCENES, scorer=tmp_path / "scorer.safetensors"))
    _load.cache_clear()
    with pytest.raises(
        UserError, match=r"scorer\.safetensors .* missing .* reinstall thalweg, or"
    ) as refused:
        score_latents(torch.zeros(1, 3, 16, 16), 0.5, PROMPTS[:1])
    assert "\n" not in str(refused.value)


def test_a_recipe_names_it_and_only_worlds_that_have_one():
    read = TypeAdapter(Reward).validate_python
    assert read("scorer") == ScorerReward() == read({"kind": "scorer", "world": "scenes"})
    assert (read("scorer").name, read("scorer").weight) == ("scenes_scorer", 1.0)
    with pytest.raises(ValidationError, match="the world 'glyphs' has no scorer; choose one of: scenes"):
        read({"kind": "scorer", "world": "glyphs"})


def test_rewards_say_whether_they_have_a_gradient_and_read_noisy_latents():
    abilities = {name: (kind.differentiable, kind.per_step) for name, kind in KINDS.items()}
    assert abilities.pop("scorer") == (True, True)
    assert [abilities.pop(name) for name in ("brightness", "clipscore", "pickscore")] == [(True, False)] * 3
    assert set(abilities.values()) == {(False, False)}
