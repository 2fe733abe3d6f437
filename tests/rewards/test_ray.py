"""Rewards on workers of a Ray cluster of one machine, started for the test and ended with it."""

import os
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rewards import Reward, close_rewards, open_rewards, score, weights_of
from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe
from training.ray_cluster import becomes_free, cluster
from training.small_runs import assert_same_run, small, tiny_world

__all__ = ["cluster", "tiny_world"]

IMAGES = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 6)
PROMPTS = [Prompt(f"prompt {n}", {"n": n}) for n in range(5)]


def on_ray(reward, **settings):
    return TypeAdapter(Reward).validate_python({"kind": "ray", "reward": reward, "workers": 2, **settings})


def test_a_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setattr("thalweg.core.team.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"reward 'brightness': ray is not installed; pip install 'thalweg\[ray\]'"
    ):
        open_rewards([on_ray("brightness")], PROMPTS)


@pytest.mark.slow
def test_reading_a_recipe_does_not_import_ray():
    read = (
        "import sys; from thalweg.training.recipe.load import load_recipe; "
        "load_recipe('flow-grpo', {'rewards': [{'kind': 'ray', 'reward': 'brightness'}]}); "
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", read], check=False).returncode == 0


def test_name_and_weight_are_those_of_the_reward_within():
    rewards = [on_ray({"kind": "http", "url": "http://judge", "name": "judge", "weight": 0.25})]
    assert weights_of(rewards) == {"judge": 0.25}


def test_a_reward_that_no_worker_can_hold_is_named():
    with pytest.raises(UserError, match=r"rewards.*reward.*no reward is called 'scenes'"):
        load_recipe("flow-grpo", {"rewards": [{"kind": "ray", "reward": "scenes"}]})


@pytest.mark.parametrize("within", ["scenes", {"kind": "scorer"}, {"kind": "ray", "reward": "brightness"}])
def test_what_reads_the_run_stays_in_it(within):
    with pytest.raises(ValidationError):
        on_ray(within)


def test_a_prompt_that_cannot_be_judged_is_refused_before_workers_start():
    with pytest.raises(UserError, match="has no text within double quotes"):
        open_rewards([on_ray("ocr")], PROMPTS)


@pytest.mark.slow
def test_workers_judge_as_the_reward_does_in_order_and_one_that_fails_is_named(cluster):
    def judge(images, prompts):  # goes to the workers by value, as it is nobody's to import
        words = {prompt.text for prompt in prompts}
        if "die" in words:
            os._exit(1)
        if "raise" in words:
            raise KeyError("no such thing")
        return [
            image.mean() + 10 * prompt.metadata["n"] + 1000 * (os.getpid() % 97)
            for image, prompt in zip(images, prompts, strict=True)
        ]

    rewards = [on_ray(judge)]
    open_rewards(rewards, PROMPTS)
    found = score(rewards, IMAGES, PROMPTS)["judge"]
    assert_close(found % 1000, torch.linspace(0, 1, 5) + 10 * torch.arange(5), atol=1e-2, rtol=0)
    assert len((found // 1000).unique()) == 2  # both took part
    assert_close(score(rewards, IMAGES[2:3], PROMPTS[2:3])["judge"] % 1000, torch.tensor([20.5]))
    assert len(score(rewards, IMAGES[:0], [])["judge"]) == 0
    with pytest.raises(UserError, match="reward 'judge' raised KeyError: 'no such thing'; mend the function"):
        score(rewards, IMAGES, [*PROMPTS[:4], Prompt("raise")])
    with pytest.raises(UserError, match=r"^reward 'judge': Ray worker 2 of 2 died .*and resume the run$"):
        score(rewards, IMAGES, [*PROMPTS[:4], Prompt("die")])
    close_rewards(rewards)
    assert becomes_free(cluster)


@pytest.mark.slow
def test_workers_that_the_cluster_has_no_room_for_are_one_line(cluster):
    reward = on_ray("brightness", cpus_per_worker=32, timeout=2)
    words = "gave no answer within 2 s; they need 64 CPUs and 0 GPUs of the cluster's 2 and 0"
    with pytest.raises(UserError, match=words):
        open_rewards([reward], PROMPTS)


@pytest.mark.slow
def test_a_run_is_judged_by_workers_as_without_them_and_ends_them(cluster, tiny_world, tmp_path):
    on_workers = {"rewards": [{"kind": "ray", "reward": "brightness", "workers": 2}]}
    train(small("flow-grpo", {"iterations": 1}), tmp_path / "here")
    train(small("flow-grpo", {"iterations": 1} | on_workers), tmp_path / "there")
    assert_same_run(tmp_path / "here", tmp_path / "there")
    assert becomes_free(cluster)
    assert cluster.is_initialized()  # not the run's to end
