"""How an evaluation makes its samples, in whole runs."""

import torch

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.training.evaluate import summarise_steps
from thalweg.training.folder.saved import sample
from thalweg.training.loop import train
from training.small_runs import metrics_of, small, trains

RED = ["a red square"]


def test_a_run_is_sampled_with_its_frozen_weights_at_the_end(tiny_world, tmp_path):
    frozen = {"weights.reference": {"update": "frozen"}}
    moved = {"optim.learning_rate": 0.02, "evaluation.weights": "policy"}
    train(small("diffusion-nft", frozen | moved), tmp_path / "run")
    eight = ["evaluation.steps=8"]
    own, mixed, more = (
        sample(tmp_path / "run", RED, overrides=[*eight, *finish])
        for finish in (
            [],
            ["evaluation.finish={weights: reference, steps: 2}"],
            ["evaluation.finish={weights: reference, steps: 7}"],
        )
    )
    base = sample("diffusion-nft", RED, overrides=eight)
    assert not torch.allclose(own, mixed, atol=1e-3) and not torch.allclose(mixed, more, atol=1e-3)
    assert (more - base).abs().mean() < (own - base).abs().mean()


def test_step_wise_sampling_measures_other_images(tiny_world, tmp_path):
    scorer = {"kind": "scorer", "world": "scenes", "at": "steps", "weight": 0.0}
    stepwise = {"rewards": ["brightness", scorer], "evaluation.stepwise": {"reward": "scenes_scorer"}}
    rewards = []
    for number, changes in enumerate(({}, stepwise)):
        train(small("diffusion-nft", {"iterations": 0} | changes), tmp_path / str(number))
        rewards.append(metrics_of(tmp_path / str(number))[0]["reward"])
    assert rewards[0] != rewards[1]


def test_what_judges_of_noisy_states_say_is_told_where_steps_are_trained(tiny_world, tmp_path):
    nan = torch.nan
    steps = {"judge": (torch.tensor([nan]), torch.tensor([1.0, 3.0]), torch.tensor([nan, 5.0]))}
    assert summarise_steps(Scores({}, steps), Processes()) == {"reward/judge/steps": 3.0}
    assert summarise_steps(Scores({}, {"judge": (torch.tensor([nan]),)}), Processes()) == {}
    line = trains(train(small("step-grpo", {"iterations": 1}), tmp_path / "run"))[0]
    assert 0 < line["reward/scenes_scorer/steps"] < 1  # a chance
