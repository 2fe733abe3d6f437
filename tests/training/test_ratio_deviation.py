"""Design promise 2: the log-prob stored at rollout is the one the first update computes again."""

import pytest

from thalweg.objectives import Balance, ChunkRatio, ClippedRatio, Forward, OnPolicyDistillation
from thalweg.objectives.contract import PathwiseContract
from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe, recipe_names
from training.several_processes import on_processes
from training.small_runs import small, trains

OBJECTIVES = {name: load_recipe(name).objective for name in recipe_names()}
POLICY_GRADIENT = [
    name for name, of in OBJECTIVES.items() if isinstance(of, ClippedRatio | ChunkRatio | Balance)
]
FORWARD = [name for name, of in OBJECTIVES.items() if isinstance(of, Forward)]


def test_all_recipes_but_those_that_read_no_density_are_policy_gradients():
    others = {name: of for name, of in OBJECTIVES.items() if name not in POLICY_GRADIENT}
    assert all(isinstance(of, Forward | PathwiseContract | OnPolicyDistillation) for of in others.values())


def deviation(name, rollout, update, out):
    """Of an iteration of the shipped weights, at these micro-batches, with what the clip allows."""
    shapes = {"rollout.micro_batch": rollout, "optim.micro_batch": update}
    recipe = small(name, {"iterations": 1, "data.prompts_per_iteration": 1, **shapes})
    (line,) = trains(train(recipe, out))
    return line["ratio_deviation"], recipe.objective.clip_range


@pytest.mark.parametrize(
    "name", ["flow-grpo", "gcpo", "tempflow-grpo", "tree-grpo", "dense-grpo", "euphonium"]
)
def test_the_log_prob_computed_again_is_the_stored_one_at_the_batch_shape_of_the_rollout(name, tmp_path):
    # One sample a pass: the only shape that all levels of a forest and all updates share.
    assert deviation(name, 1, 1, tmp_path / "run")[0] == 0


@pytest.mark.parametrize("name", ["flow-grpo", "gcpo", "tempflow-grpo", "branch-grpo", "op-grpo"])
@pytest.mark.parametrize("shapes", [(1, 64), (64, 3)])
def test_another_batch_shape_moves_the_ratio_by_under_one_percent_of_the_clip_range(name, shapes, tmp_path):
    moved, clip_range = deviation(name, *shapes, tmp_path / "run")
    assert moved < 0.01 * clip_range


@pytest.mark.parametrize("name", FORWARD)
def test_the_policy_is_at_all_its_anchors_before_the_first_update_exactly(name, tiny_world, tmp_path):
    (line,) = trains(
        train(small(name, {"iterations": 1, "optim.updates_per_iteration": 1}), tmp_path / "run")
    )
    at = [value for key, value in line.items() if key.startswith(("distance/", "log_ratio", "clip_fraction"))]
    assert at and all(value == 0 for value in at)


@pytest.mark.parametrize("name", ["dense-grpo", "flow-grpo", "op-grpo", "tree-grpo"])
def test_processes_that_share_the_samples_move_no_ratio(name, tiny_world, tmp_path):
    recipe = small(name, {"iterations": 1, "optim.micro_batch": 3})
    on_processes(2, lambda: train(recipe, tmp_path / "run"))
    (line,) = trains(tmp_path / "run")
    assert line["processes"] == 2
    assert line["ratio_deviation"] < 0.01 * recipe.objective.clip_range


@pytest.mark.parametrize(("old_log_prob", "is_off"), [("stored", True), ("recompute", False)])
def test_samples_of_other_weights_show_in_the_deviation_unless_recomputed(
    old_log_prob, is_off, tiny_world, tmp_path
):
    # `old` stays at the base, the policy leaves it in the first iteration.
    recipe = small(
        "flow-grpo",
        {
            "weights.old": {"update": {"kind": "frozen"}},
            "rollout.weights": "old",
            "objective.old_log_prob": old_log_prob,
            "optim.learning_rate": 0.01,
        },
    )
    first, second = (line["ratio_deviation"] for line in trains(train(recipe, tmp_path / "run")))
    assert first < 1e-5
    assert (second > 1e-3) == is_off
