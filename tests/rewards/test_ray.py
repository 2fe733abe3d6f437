"""Rewards on workers of a Ray cluster of one machine, started for the test and ended with it."""

import os
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rewards import Reward, close_rewards, open_rewards, score, weights_of
from thalweg.training.loop import train
from training.small_runs import small, tiny_world, trains

__all__ = ["tiny_world"]

IMAGES = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 6)
PROMPTS = [Prompt(f"prompt {n}", {"n": n}) for n in range(5)]


def on_ray(reward, **settings):
    return TypeAdapter(Reward).validate_python({"kind": "ray", "reward": reward, "workers": 2, **settings})


def test_a_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setattr("thalweg.rewards.ray.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"reward 'brightness': ray is not installed; pip install 'thalweg\[ray\]'"
    ):
        open_rewards([on_ray("brightness")], PROMPTS)


def test_reading_a_recipe_does_not_import_ray():
    assert on_ray("brightness").reward.kind == "brightness"
    assert "ray" not in sys.modules or sys.modules["ray"].__file__ is not None


def test_name_and_weight_are_those_of_the_reward_within():
    rewards = [on_ray({"kind": "http", "url": "http://judge", "name": "judge", "weight": 0.25})]
    assert weights_of(rewards) == {"judge": 0.25}


@pytest.mark.parametrize("within", ["scenes", {"kind": "scorer"}, {"kind": "ray", "reward": "brightness"}])
def test_what_reads_the_run_stays_in_it(within):
    with pytest.raises(ValidationError):
        on_ray(within)


def test_a_prompt_that_cannot_be_judged_is_refused_before_workers_start():
    with pytest.raises(UserError, match="has no text within double quotes"):
        open_rewards([on_ray("ocr")], PROMPTS)


@pytest.fixture
def cluster():
    """Two processors of this machine."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def alive(ray):
    from ray.util.state import list_actors

    return [actor for actor in list_actors() if actor.state == "ALIVE"]


@pytest.mark.slow
def test_workers_judge_as_the_reward_does_in_order_and_end_with_the_run(cluster, tiny_world, tmp_path):
    def place_and_worker(images, prompts):  # a function of its own process
        return [
            image.mean() + 10 * prompt.metadata["n"] + 1000 * (os.getpid() % 97)
            for image, prompt in zip(images, prompts)
        ]

    both = [on_ray("brightness"), on_ray(place_and_worker)]
    open_rewards(both[:1], PROMPTS)
    found = score(both[:1], IMAGES, PROMPTS)["brightness"]
    assert_close(found, torch.linspace(0, 1, 5))
    assert score(both[:1], IMAGES[:1], PROMPTS[:1])["brightness"].tolist() == [0.0]
    assert len(score(both[:1], IMAGES[:0], [])["brightness"]) == 0
    close_rewards(both)
    found = score(both[1:], IMAGES, PROMPTS)["place_and_worker"]
    assert_close(found % 1000, torch.linspace(0, 1, 5) + 10 * torch.arange(5), atol=1e-2, rtol=0)
    assert len((found // 1000).unique()) == 2  # both took part
    close_rewards(both)

    def dies_at_3(images, prompts):
        if any(prompt.metadata["n"] == 3 for prompt in prompts):
            os._exit(1)
        return [0.0] * len(images)

    def raises(images, prompts):
        raise KeyError("no such thing")

    dying, raising = on_ray(dies_at_3), on_ray(raises)
    with pytest.raises(UserError, match="reward 'dies_at_3': Ray worker 2 of 2 died .* and resume the run"):
        score([dying], IMAGES, PROMPTS)
    close_rewards([dying])
    with pytest.raises(UserError, match="reward 'raises' raised KeyError"):
        score([raising], IMAGES, PROMPTS)
    close_rewards([raising])
    with pytest.raises(
        UserError, match="gave no answer within 2 s; they need 64 CPUs and 0 GPUs of the cluster's 2 and 0"
    ):
        open_rewards([on_ray("brightness", cpus_per_worker=32, timeout=2)], PROMPTS)
    recipe = {"rewards": [{"kind": "ray", "reward": "brightness", "workers": 2}], "iterations": 1}
    train(small("flow-grpo"), tmp_path / "here")
    train(small("flow-grpo", recipe), tmp_path / "there")
    assert [line["reward"] for line in trains(tmp_path / "there")] == [trains(tmp_path / "here")[0]["reward"]]
    assert cluster.is_initialized()  # ours, not the run's to end
    assert cluster.available_resources().get("CPU") == 2.0
