"""Promises that hold for each recipe the library ships, on a tiny random network."""

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Transitions
from thalweg.models import MiniatureModel
from thalweg.models.miniature.policy import LoRA
from thalweg.objectives import ChunkRatio, ClippedRatio, Forward, OnPolicyDistillation
from thalweg.objectives.contract import PathwiseContract
from thalweg.rewards import judges_steps, weights_of
from thalweg.training.backward import backward, measure, on_training_path
from thalweg.training.collect import collect
from thalweg.training.recipe.load import load_recipe, recipe_names
from thalweg.training.weight_rules import add_named
from training.small_runs import small

# tests/properties/test_pathwise_recipes.py has the others.
NAMES = [
    name
    for name in recipe_names()
    if not isinstance(load_recipe(name).objective, PathwiseContract | OnPolicyDistillation)
    and isinstance(load_recipe(name).model, MiniatureModel)  # tests/training/test_parts.py has the other
]
PATHS = [name for name in NAMES if isinstance(small(name).objective, ClippedRatio | ChunkRatio)]
FORWARD = [name for name in NAMES if isinstance(small(name).objective, Forward)]
ADAPTER = LoRA(rank=2, alpha=4)
WITH_ADAPTER = ["diffusion-nft", "flow-grpo", "gcpo", "tree-grpo"]
# (network passes, trained edges) of a prompt: N = 8 steps, G = 4 samples, the last step never trained.
OWN, SHARED = 4 * 8, 1 + 4 * 7  # one initial noise a sample; or one for all, whose first pass is shared
COST = {
    "branch-grpo": (1 + 2 + 4 * 6, 2 + 4 * 6),  # forks at steps 0 and 1
    "dance-grpo": (SHARED, 4 * 7),
    "dense-grpo": (OWN + 4 * sum(range(1, 8)), 4 * 7),  # a probe from x_j takes 7 - j passes of its own
    "dynamic-tree-rpo": (1 + 2 + 4 * 6, 2 + 4 + 4 + 4),  # a window of 4 from step 0
    "euphonium": (SHARED, 4 * 7),
    "flash-grpo": (OWN, 4),
    "flow-cps": (OWN, 4 * 7),
    "flow-dppo": (OWN, 4 * 3),
    "flow-grpo": (OWN, 4 * 7),
    "flow-grpo-fast": (OWN, 4 * 2),
    "gcpo": (OWN, 4 * 7),
    "grpo-guard": (OWN, 4 * 7),
    "mix-grpo": (SHARED, 4 * 3),
    "mix-grpo-flash": (1 + 4 * 4, 4 * 3),  # 3 drawn steps, then int(.5 (8 - 2)) - 1 = 2
    "op-grpo": (OWN, 4 * 7),
    "otca": (SHARED, 4 * 7),
    "precise": (OWN, 4 * 7),
    "rollout-correction": (SHARED, 4 * 3),
    "step-grpo": (OWN, 4 * 7 * 3),  # 3 candidates a step, of which one goes on
    "tmpo": (2 + 4 * 6, 4 * 3),  # a window of 3 from step 2
    "rsm-zeroth-order": (2 * (3 + 2 * 7 + 2 * 5), 2 * 4),  # 2 noises, each with 2 branches from steps 0 and 2
    **dict.fromkeys(FORWARD, (OWN, 0)),
    "diffusion-apo-half-online": (3 * 8, 0),  # the first sample is given
    "realalign": (2 * 8, 0),
}


def collected(recipe, policy, prompts):
    """Rows that the recipe trains on before its first update, for two prompts and random rewards."""
    add_named(policy.weights, recipe.weights)
    forest = collect(recipe, policy, prompts[:2], Processes(), iteration=0).forest
    generator = torch.Generator().manual_seed(0)

    def random(nodes):
        return torch.randn(len(nodes), generator=generator)

    scores = Scores(
        leaves={"brightness": random(forest.leaves)},
        steps={
            reward.name: tuple(random(level.parent) for level in forest.levels)
            for reward in recipe.rewards
            if judges_steps(reward)
        },
        probes={"brightness": random(forest.probe_node)} if recipe.rollout.probes else {},
        marks=(random(forest.leaves)[:, None, None, None] > 0).float().expand(-1, 1, 16, 16),
    )
    advantages = recipe.credit.assign(forest, scores, weights_of(recipe.rewards), Processes())
    rows = recipe.objective.experience(forest, advantages, seed=0, iteration=0)
    rows = recipe.selection.select(rows, seed=0, iteration=0)
    return on_training_path(recipe.objective, policy, rows, forest.condition, 8, Processes())[0], forest


def gradient(recipe, policy, rows, condition, micro_batch=8) -> list[torch.Tensor]:
    backward(recipe.objective, policy, rows, condition, micro_batch, 1 / len(rows))
    return [p.grad for p in policy.weights.parameters.values()]


def moved(policy) -> None:
    """The policy after an update, so that ratios, clips and anchors act."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in policy.weights.parameters.values():
            values += 0.002 * torch.randn(values.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "lora"), [(name, None) for name in NAMES] + [(name, ADAPTER) for name in WITH_ADAPTER]
)
def test_no_gradient_is_lost_in_micro_batches_or_when_activations_are_recomputed(
    name, lora, tiny_policy, prompts
):
    found = []
    for checkpointing, micro_batch in ((False, 1000), (True, 7)):
        recipe = small(name)
        model = recipe.model.model_copy(update={"lora": lora, "gradient_checkpointing": checkpointing})
        policy = tiny_policy(model)
        rows, forest = collected(recipe, policy, prompts)
        moved(policy)
        found.append(gradient(recipe, policy, rows, forest.condition, micro_batch))
    assert all(g is not None for g in found[0] + found[1])
    assert all(g.abs().max() > 0 for g in found[0])
    largest = max(float(g.abs().max()) for g in found[0])
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("name", PATHS)
def test_stored_steps_have_ratio_one_before_the_first_update(name, tiny_policy, prompts):
    recipe, policy = small(name), tiny_policy()
    rows, forest = collected(recipe, policy, prompts)
    assert isinstance(rows, Transitions) and len(rows) > 0
    report = backward(recipe.objective, policy, rows, forest.condition, 8, 1.0)
    # A hundredth of the clip range; other batch shapes than in the rollout round differently.
    assert report.ratio_deviation < recipe.objective.clip_range / 100
    assert report.totals["clip_fraction"] == 0


def test_a_wider_draw_at_forks_and_noise_that_grows_keep_ratio_one(tiny_policy, prompts):
    louder = {"rollout.plan.fork_spread": 4.0, "rollout.plan.noise_growth": 0.5}
    recipe, policy = small("branch-grpo", louder), tiny_policy()
    rows, forest = collected(recipe, policy, prompts)
    plain, _ = collected(small("branch-grpo"), tiny_policy(), prompts)
    assert rows.std.max() > 3 * plain.std.max()
    report = backward(recipe.objective, policy, rows, forest.condition, 8, 1.0)
    assert report.ratio_deviation < recipe.objective.clip_range / 100


def test_at_the_batch_shape_of_the_rollout_the_ratio_is_exactly_one(tiny_policy, prompts):
    recipe, policy = small("flow-grpo"), tiny_policy()
    rows, forest = collected(recipe, policy, prompts)
    report = backward(recipe.objective, policy, rows, forest.condition, 8, 1.0)
    assert report.ratio_deviation == 0


@pytest.mark.parametrize("lora", [None, ADAPTER], ids=["whole", "adapter"])
@pytest.mark.parametrize("shared", [False, True], ids=["own noise", "shared noise"])
@pytest.mark.parametrize("name", ["awm", "v-grpo"])
def test_forward_ratios_to_stored_old_weights_are_one_before_the_first_update(
    name, shared, lora, tiny_policy, prompts
):
    old = {"objective.rule.old": "old", "weights.old": {"update": {"kind": "copy"}}} if name == "awm" else {}
    recipe = small(name, {"objective.shared_in_group": shared, **old})
    policy = tiny_policy(recipe.model.model_copy(update={"lora": lora}))
    rows, forest = collected(recipe, policy, prompts)
    assert "old" in recipe.objective.anchors and rows.x0.dtype == torch.float32

    def deviation() -> float:
        scalars = measure(recipe.objective, policy, rows, forest.condition)
        log_ratio = recipe.objective.loss(scalars, rows)[1]["log_ratio"]
        assert log_ratio.dtype == torch.float32 and len(log_ratio) == len(rows)
        return float((log_ratio.exp() - 1).abs().max())

    assert deviation() < 1e-6
    moved(policy)
    assert deviation() > 1e-5  # the old weights stay


def cost(name, forest) -> tuple[int, int]:
    """What a prompt costs, worked out by hand."""
    if name == "tree-grpo":  # a window of 3 from a drawn step; forks at its first two
        start = next(at for at, level in enumerate(forest.levels[1:]) if level.trained.any())
        return start + 1 + 2 + 4 * (6 - start), 2 + 4 + 4
    if name == "tempflow-grpo":  # 2 trunks to the last fork, and from each fork 2 branches to the end
        forks = sorted(set(forest.leaves.fork_step.tolist()))
        return 2 * (forks[-1] + 1 + sum(2 * (7 - fork) for fork in forks)), 2 * 6
    return COST[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_rollout_takes_the_passes_that_its_layout_says(name, tiny_policy, prompts):
    recipe, policy = small(name), tiny_policy()
    add_named(policy.weights, recipe.weights)
    forest = collect(recipe, policy, prompts[:2], Processes(), iteration=0).forest
    passes, trained = cost(name, forest)
    # Cheap samples of other noises, or the way back from a given sample to its noise.
    looks = {"sol-rl": 8 * 4, "diffusion-apo-half-online": 7}.get(name, 0)
    assert policy.passes.evaluations == 2 * (passes + looks)
    assert sum(int(level.trained.sum()) for level in forest.levels) == 2 * trained
    assert recipe.rollout.passes(0, 0, 2) == (2 * passes, 2 * trained)
    assert len(forest.leaves) == 2 * recipe.rollout.group_size


@pytest.mark.parametrize("name", ["diffusion-nft", "dense-grpo", "step-grpo", "tempflow-grpo", "tree-grpo"])
def test_conditions_of_rows_are_those_of_their_prompts(name, tiny_policy, prompts):
    rows, forest = collected(small(name), tiny_policy(), prompts)
    assert rows.condition.tolist() == rows.prompt_slot.tolist()
    assert set(rows.prompt_slot.tolist()) == {0, 1}
    ends = torch.cat([level.end for level in forest.levels])
    assert set(rows.sample.tolist()) <= set(ends.tolist()) - {-1}
