"""Network passes counted by hand: P=2 prompts, G=4 samples (TempFlow: 12), N=8 steps, B = P·G."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.rewards import score, weights_of
from thalweg.training.collect import collect
from thalweg.training.data.prompts import draw_prompts, load_prompts
from thalweg.training.loop import train
from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from thalweg.worlds import WORLDS
from training.small_runs import saved_state, small, trains

B, N, K = 8, 8, 7  # the last step is never trained
SHARED = 2 + (N - 1) * B  # one initial noise a prompt: its first step is computed once
ALL_CHUNKS = {"objective.chunk_fraction": 1}

CASES = [
    ("flow-grpo", {}, N * B + K * B, K * B),
    ("flow-grpo", {"objective.kl_weight": 0.1}, N * B + 2 * K * B, K * B),
    ("flow-grpo", {"objective.old_log_prob": "recompute"}, N * B + 2 * K * B, K * B),
    ("flow-grpo", {"model.guidance_scale": 2.0}, 2 * (N * B + K * B), 2 * K * B),
    ("flow-grpo", {"rollout.steps": 4}, 4 * B + 3 * B, 3 * B),
    ("dance-grpo", {}, SHARED + 4 * B, 4 * B),  # 4 = 60% of 7 steps, rounded down
    ("mix-grpo", {}, SHARED + 3 * B, 3 * B),
    ("mix-grpo", {"rollout.plan.start": 2}, 3 * 2 + (N - 3) * B + 3 * B, 3 * B),
    ("diffusion-nft", {}, N * B + 2 * 3 * B, 3 * B),  # 3 noise levels, each also under `old`
    ("diffusion-nft", {"objective.sigmas.num_sigmas": 1}, N * B + 2 * B, B),
    ("awm", {}, N * B + 3 * 3 * B, 3 * B),  # also under `ema` and `reference`
    ("v-grpo", {}, N * B + 2 * 4 * B, 4 * B),  # 4 levels, also under `old`
    ("v-grpo", {"optim.micro_batch": 3}, N * B + 4 * 4 * B, 4 * B),  # and all twice
    ("crd", {}, N * B + 4 * 3 * B, 3 * B),
    ("online-dpo", {}, N * B + 3 * 3 * 4, 3 * 4),  # pairs of 2 prompts; also under `reference` and `old`
    ("online-dpo", {"optim.micro_batch": 4}, N * B + 6 * 3 * 4, 3 * 4),
    ("dgpo", {}, N * B + 3 * 3 * B, 3 * B),  # also under `reference` and `ema`
    # Guided weights take two passes a velocity: in the rollout, and as an anchor.
    ("dgpo", {"weights.ema.guidance_scale": 4.5, "rollout.weights": "ema"}, 2 * N * B + 4 * 3 * B, 3 * B),
    ("sol-rl", {"weights.cheap.guidance_scale": 3.0}, 2 * 2 * 8 * 4 + N * B + 2 * 3 * B, 3 * B),
    ("dgpo", {"optim.micro_batch": 4}, N * B + 2 * 3 * 3 * B, 3 * B),
    ("ram", {}, N * B + 3 * 3 * B, 3 * B),  # 3 levels, also under `old` and `reference`
    ("advantage-flow", {}, N * B + 3 * 3 * B, 3 * B),
    ("elbo-epg", {}, N * B + 3 * 3 * B, 3 * B),
    ("elbo-pepg", {}, N * B + 3 * 3 * B, 3 * B),
    ("elbo-par", {}, N * B + 3 * 3 * B, 3 * B),
    ("omninft", {}, N * B + 3 * 3 * B, 3 * B),  # both parts in one pass
    ("diffusion-dpo", {}, N * B + 2 * 3 * 4, 3 * 4),
    ("diffusion-apo", {}, N * B + 3 * 3 * 4, 3 * 4),
    # A given sample is followed back to its noise, but for the last step.
    ("diffusion-apo-half-online", {}, N * B - 2 + 3 * 3 * 4, 3 * 4),
    ("realalign", {"rollout.group_size": 2}, 2 * 3 * 4, 3 * 4),  # nothing is drawn
    # Of each of 2·2 roots: the trunk to the fork at step 2, then 2 samples of each fork to the end.
    ("rsm-zeroth-order", {}, 4 * (3 + 2 * 7 + 2 * 5) + 2 * 16, 16),
    ("tmpo", {}, 2 * 2 + 6 * B + 3 * B, 3 * B),  # two steps of a trunk a prompt
    ("gcpo", ALL_CHUNKS, N * B + K * B, K * B),
    ("gcpo", {"objective.chunks": [3, 3], "rollout.steps": 7}, 7 * B + 3 * B, 3 * B),  # one of two chunks
    ("gcpo", ALL_CHUNKS | {"optim.micro_batch": 8}, N * B + K * B, K * B),  # a sample's 7 passes fit
    ("gcpo", ALL_CHUNKS | {"optim.micro_batch": 6}, N * B + 2 * K * B, K * B),  # two sweeps
    (
        "gcpo",
        ALL_CHUNKS | {"optim.micro_batch": 6, "optim.updates_per_iteration": 8},
        N * B + 2 * K * B,
        K * B,
    ),
    # A probe from x_j takes 7 - j passes besides the one it shares.
    ("dense-grpo", {}, N * B + 28 * B + K * B, K * B),
    ("step-grpo", {}, N * B + 2 * 3 * K * B, 3 * K * B),  # 3 candidates a step, each beside the reference
    ("step-grpo", {"objective.kl_weight": 0}, N * B + 3 * K * B, 3 * K * B),
    ("branch-grpo", {"selection": {}}, 2 * (1 + 2 + 4 * 6) + 2 * (2 + 4 * 6), 2 * (2 + 4 * 6)),
    # Steps that start at sigma .5 or above: 5 of 7; log-probs computed again.
    ("op-grpo", {}, N * B + 2 * 5 * B, 5 * B),
    (
        "branch-grpo",
        {"selection.width_prune": "none"},
        2 * (1 + 2 + 4 * 6) + 2 * (2 + 4 * 5),
        2 * (2 + 4 * 5),
    ),
    (
        "sol-rl",
        {},
        2 * 8 * 4 + N * B + 2 * 3 * B,
        3 * B,
    ),  # looks at 8 initial noises of each prompt, in 4 steps
    ("rollout-correction", {}, SHARED + 2 * 3 * B, 3 * B),  # log-probs computed again
    ("mix-grpo-flash", {}, 2 + 4 * B + 3 * B, 3 * B),  # 5 steps
]


@pytest.mark.parametrize(("name", "overrides", "evaluations", "backwards"), CASES)
def test_an_iteration_takes_the_passes_of_the_closed_form(
    name, overrides, evaluations, backwards, tiny_world, tmp_path
):
    recipe = small(name, {"iterations": 1, "credit.limit": None, **overrides})
    (line,) = trains(train(recipe, tmp_path / "run"))
    assert (line["evaluations"], line["backwards"]) == (evaluations, backwards)
    plan = batch_plan(recipe, load_policy(recipe))
    assert (plan.evaluations, plan.gradient_passes) == (evaluations, backwards)


@pytest.mark.parametrize(("noise", "states"), [("rollout", 0), ("path", (N + 1) * B)])
def test_states_that_a_forward_objective_reads_are_planned_for(noise, states, tiny_world):
    recipe = small("diffusion-apo", {"objective.noise": noise})
    policy = load_policy(recipe)
    forest = collect(recipe, policy, load_prompts("training", "scenes")[:2], Processes(), iteration=0).forest
    assert sum(len(level.latents) for level in forest.levels[:-1]) == max(states - B, 0)
    # The sample and its noise at 3 levels, and every state.
    size = 4 * math.prod(policy.latent_shape)
    assert batch_plan(recipe, policy).stored_bytes == (2 * 3 * B + states) * size


def test_a_corrected_sample_takes_passes_of_its_own_and_a_plan_counts_all_that_may_be(
    tiny_world, tmp_path, monkeypatch
):
    judged = itertools.count()

    def every_other_fails(image, prompt):
        return torch.full(image.shape[1:], float(next(judged) % 2))

    monkeypatch.setitem(WORLDS, "scenes", replace(WORLDS["scenes"], blame=every_other_fails))
    recipe = small("creflow", {"iterations": 1})
    (line,) = trains(train(recipe, tmp_path / "run"))
    rows = 3 * (B + B // 2)  # each group of 4 has 2 right samples, and 2 to correct
    assert (line["evaluations"], line["backwards"]) == (N * B + 2 * rows, rows)  # also under `old`
    assert line["corrected"] == pytest.approx((B // 2) / (B + B // 2))
    plan = batch_plan(recipe, load_policy(recipe))
    assert (plan.evaluations, plan.gradient_passes) == (N * B + 2 * 3 * 2 * B, 3 * 2 * B)
    assert plan.depends_on_rewards


@pytest.mark.parametrize(
    ("name", "overrides", "depends"),
    [
        ("diffusion-nft", {"selection.drop_zero": False}, False),
        ("diffusion-nft", {}, True),  # of a group without variance
        ("online-dpo", {"selection.drop_zero": False}, True),  # of a group without a pair
        ("creflow", {"objective.corrective_weight": 0}, False),
    ],
)
def test_a_plan_says_whether_rewards_may_leave_fewer_passes(name, overrides, depends, tiny_world):
    recipe = small(name, overrides)
    assert batch_plan(recipe, load_policy(recipe)).depends_on_rewards == depends


def test_branches_share_their_trunk(tiny_world, tmp_path):
    recipe = small("tempflow-grpo", {"iterations": 1})
    forest = collect(
        recipe, load_policy(recipe), load_prompts("training", "scenes")[:2], Processes(), iteration=0
    ).forest
    forks = sorted(set(forest.leaves.fork_step.tolist()))
    assert len(forks) == 3 and max(forks) <= 5
    # Of each of 2·2 roots: the trunk down to the last fork, then 2 samples of each fork to the end.
    rollout = 4 * (max(forks) + 1 + sum(2 * (N - 1 - fork) for fork in forks))
    (line,) = trains(train(recipe, tmp_path / "run"))
    assert (line["evaluations"], line["backwards"]) == (rollout + 24, 24)
    assert batch_plan(recipe, load_policy(recipe)).evaluations == rollout + 24


def test_the_passes_of_a_run_add_up_and_evaluations_of_the_model_are_none_of_them(tiny_world, tmp_path):
    lines = trains(train(small("flow-grpo", {"iterations": 3, "evaluation.every": 1}), tmp_path / "run"))
    assert [line["evaluations"] for line in lines] == [120, 240, 360]
    assert [line["backwards"] for line in lines] == [56, 112, 168]


def test_a_checkpoint_counts_iterations_updates_and_passes(tiny_world, tmp_path):
    run = train(small("flow-grpo", {"iterations": 3}), tmp_path / "run")
    state = saved_state(run)
    assert (state["iteration"], state["updates"]) == (3, 6)  # two updates an iteration
    assert (state["evaluations"], state["backwards"]) == (360, 168)


def test_a_group_without_variance_costs_no_pass_of_the_update(tiny_world, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red square\na blue circle\n")

    def brightness_of_circles(images, prompts):
        asked = torch.tensor([p.text == "a blue circle" for p in prompts])
        return torch.where(asked, images.flatten(1).mean(1), 0.5)

    overrides = {"rewards": [brightness_of_circles], "data.prompts": str(file), "iterations": 1}
    (line,) = trains(train(small("flow-grpo", overrides), tmp_path / "run"))
    assert (line["evaluations"], line["backwards"]) == (N * B + K * B / 2, K * B / 2)


def stored_states(recipe):
    prompts = draw_prompts(load_prompts("training", "scenes"), recipe.data, seed=0, iteration=0)
    forest = collect(recipe, load_policy(recipe), prompts, Processes(), iteration=0).forest
    scores = Scores(score(recipe.rewards, torch.rand(len(forest.leaves), 3, 4, 4), forest.leaf_prompts))
    advantages = recipe.credit.assign(forest, scores, weights_of(recipe.rewards), Processes())
    rows = recipe.objective.experience(forest, advantages, seed=0, iteration=0)
    return sum(len(level.latents) for level in forest.levels), len(rows)


@pytest.mark.parametrize("steps", [8, 16, 32])
def test_a_window_keeps_as_many_states_however_many_steps_there_are(steps, tiny_world):
    # 2 starts of the window, 3 trained states of each of 8 samples, 8 finished samples.
    assert stored_states(small("mix-grpo", {"rollout.steps": steps})) == (2 + 3 * 8 + 8, 3 * 8)


def test_without_a_path_the_finished_samples_alone_are_kept(tiny_world):
    assert stored_states(small("diffusion-nft", {"rollout.steps": 16})) == (8, 3 * 8)
