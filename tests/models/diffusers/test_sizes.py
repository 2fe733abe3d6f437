"""Samples of several sizes in one run: each as its stock pipeline makes it, and all of them one training."""

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from models.diffusers.builders import SIZE, TINY
from models.diffusers.stock import PROMPTS, STEPS, Recording
from models.diffusers.test_training import settings_of
from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.evaluation.measure import sample_groups, with_margins
from thalweg.flow import DynamicShift, FlowSDE, Shifted
from thalweg.models.sizes import decoded
from thalweg.objectives import ClippedRatio
from thalweg.rollout import AllSteps, Rollout, Root, grow
from thalweg.training.backward import backward
from thalweg.training.data.prompts import draw_prompts, load_prompts
from thalweg.training.loop import train
from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from thalweg.training.recipe.load import find_recipe, load_recipe
from training.distribution.test_processes import PROPORTIONAL, assert_close_runs
from training.several_processes import on_processes
from training.small_runs import assert_same_run, metrics_of, trains
from training.test_resume import resumed, train_until_killed

__all__ = ["settings_of"]

WIDE = {"height": SIZE, "width": SIZE + 16}
SIZES = {
    "sd3": ({"height": SIZE, "width": SIZE}, WIDE),
    "flux": ({"height": SIZE, "width": SIZE}, WIDE),
    "wan": ({"num_frames": 5}, {"num_frames": 9}),
    "stable_audio": ({"audio_seconds": 1.0}, {"audio_seconds": 2.0}),
}
REWARDS = {"stable_audio": "loudness"}
OF_RECIPE = {
    "mix-grpo": {"rollout.steps": 3, "rollout.plan.size": 1},
    "op-grpo": {"iterations": 2, "replay.fraction": 1.0},
}


def asking(name: str) -> list[Prompt]:
    """Two prompts of the first size, then one of the second."""
    first, second = SIZES[name]
    return [Prompt("a", first), Prompt("b", second), Prompt("c", first)]


@pytest.mark.parametrize("name", SIZES)
def test_samples_of_each_size_are_what_the_stock_pipeline_makes(name, tiny_policy_of):
    policy = tiny_policy_of(name)
    shapes = set()
    for asked in SIZES[name]:
        prompt = Prompt(PROMPTS[0].text, asked)
        at = policy.at(*policy.sizes_of([prompt]))
        shapes.add(at.latent_shape)
        noise = torch.randn(1, *at.latent_shape, generator=torch.Generator().manual_seed(1))
        stock = TINY[name].build()
        stock.scheduler = Recording.from_config(stock.scheduler.config)
        stock.scheduler.states = []
        made = stock(
            prompt=[prompt.text],
            num_inference_steps=STEPS,
            output_type="pt",
            return_dict=False,
            generator=torch.Generator().manual_seed(0),
            **at.given(noise, at.arguments),
            **at.arguments | {n: [at.arguments.get(n, "")] for n in at.encoder.texts},
        )[0]
        x, condition = noise, policy.encode([prompt])
        with torch.no_grad():
            for sigma, sigma_next in zip(
                *(stock.scheduler.sigmas[s].cpu() for s in (slice(-1), slice(1, None))), strict=True
            ):
                x = x + (sigma_next - sigma) * at.velocity(x, sigma[None], condition)
        assert_close(x, stock.scheduler.states[-1], atol=1e-5, rtol=1e-5)
        ((ours, _, _),) = decoded(policy, x, [prompt])
        ours = (
            ours if isinstance(ours, torch.Tensor) else ours.frames if ours.frames is not None else ours.audio
        )
        assert_close(ours, made.view_as(ours), atol=1e-4, rtol=1e-4)
    assert len(shapes) == 2


def test_a_tree_is_the_same_alone_and_beside_trees_of_another_size(tiny_policy_of):
    policy, prompts = tiny_policy_of("sd3"), asking("sd3")
    rollout = Rollout(plan=AllSteps(), group_size=2, steps=3, kernel=FlowSDE(), schedule=Shifted())
    roots = [Root(slot, group, 2 * slot + group, slot) for slot in range(3) for group in range(2)]
    forest = grow(policy, prompts, roots, rollout, seed=0, iteration=0)
    assert forest.latents.shape == (6, 4 * SIZE // 2 * (SIZE + 16) // 2)
    for slot, prompt in enumerate(prompts):
        own = [Root(slot, group, 2 * slot + group, 0) for group in range(2)]
        alone = grow(policy, [prompt], own, rollout, seed=0, iteration=0)
        at = policy.at(*policy.sizes_of([prompt]))
        mine = forest.leaves.prompt_slot == slot
        assert forest.leaves.sample[mine].tolist() == alone.leaves.sample.tolist()
        assert [p.text for p in forest.leaf_prompts][int(mine.nonzero()[0])] == prompt.text
        stored = forest.latents[mine]
        flat = alone.latents.flatten(1)
        assert alone.latents.shape[1:] == at.latent_shape
        assert_close(stored[:, : flat.shape[1]], flat, atol=1e-6, rtol=1e-6)
        assert not stored[:, flat.shape[1] :].any()
        for level, single in zip(forest.levels[1:], alone.levels[1:], strict=True):
            here = forest.roots.prompt_slot[level.root] == slot
            assert_close(level.log_prob[here], single.log_prob, atol=1e-6, rtol=1e-6, equal_nan=True)


def test_each_size_is_clipped_in_nats_by_its_own_elements_and_gradients_add_up(tiny_policy_of):
    policy, prompts = tiny_policy_of("sd3"), asking("sd3")
    rollout = Rollout(plan=AllSteps(), group_size=1, steps=2, kernel=FlowSDE(), schedule=Shifted())
    small, large = 4 * 16 * 16, 4 * 16 * 24
    objective = ClippedRatio(clip_nats=0.005 * (small + large) / 2)  # 0.00625 and 0.00417 of the means

    def learned(prompts, roots):
        forest = grow(policy, prompts, roots, rollout, seed=0, iteration=0)
        advantages = forest.advantages(torch.ones(len(forest.leaves), 1))
        rows = objective.experience(forest, advantages, seed=0, iteration=0)
        rows = replace(rows, old_log_prob=rows.old_log_prob - 0.005)  # as if the policy had moved so far
        report = backward(objective, policy, rows, forest.condition, 2, 1.0)
        gradients = [p.grad for p in policy.weights.parameters.values()]
        for parameter in policy.weights.parameters.values():
            parameter.grad = None
        return report, [torch.zeros(1) if g is None else g for g in gradients]

    report, together = learned(prompts, [Root(slot, 0, slot, slot) for slot in range(3)])
    assert report.units == 3 and report.totals["clip_fraction"] == 1  # of the large sample alone
    alone = [learned([prompt], [Root(slot, 0, slot, 0)])[1] for slot, prompt in enumerate(prompts)]
    assert any(g.any() for g in together)
    for whole, *parts in zip(together, *alone, strict=True):
        assert_close(
            whole, torch.stack([part.expand_as(whole) for part in parts]).sum(0), atol=1e-7, rtol=1e-4
        )


def test_samples_of_two_sizes_stand_on_one_sheet_with_margins(tiny_policy_of):
    policy = tiny_policy_of("sd3")
    settings = Evaluation(steps=2, diversity_group=2)
    groups = sample_groups(policy, asking("sd3"), settings, Processes())
    assert groups.shape == (6, 3, SIZE, SIZE + 16)
    margins = torch.cat([groups[..., :8], groups[..., -8:]], 3).flatten(1)
    assert [bool(m.any()) for m in margins] == [False, False, True, True, False, False]
    picture = torch.arange(1.0, 5.0).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    framed = with_margins(picture, 4, 3)[0, 0]
    assert framed.tolist() == [[0, 0, 0], [1, 2, 0], [3, 4, 0], [0, 0, 0]]


def test_noise_of_a_small_sample_begins_that_of_a_large_one():
    # Forward noise is drawn for stored rows, whose ends are cut off where a sample is smaller.
    address = Address(0, "forward noise", 3, 1)
    assert torch.equal(address.normal((4, 6, 6)).flatten(), address.normal((200,))[:144])


def test_the_dynamic_shift_follows_the_tokens_of_each_size(tiny_policy_of):
    policy, prompts = tiny_policy_of("flux"), asking("flux")
    shift = DynamicShift(num_tokens=64, base_tokens=64, max_tokens=128)
    rollout = Rollout(plan=AllSteps(), group_size=1, steps=4, kernel=FlowSDE(), schedule=shift)
    forest = grow(policy, prompts, [Root(s, 0, s, s) for s in range(3)], rollout, seed=0, iteration=0)
    # 32 x 32 pixels are the model's own size; 32 x 48 have half as many tokens again.
    for slot, tokens in ((0, 64), (1, 96), (2, 64)):
        row = int((forest.leaves.prompt_slot == slot).nonzero())
        assert_close(
            forest.sigmas[row], DynamicShift(num_tokens=tokens, base_tokens=64, max_tokens=128).sigmas(4)
        )
    assert not torch.equal(forest.sigmas[0], forest.sigmas[2])


@pytest.fixture
def sized(settings_of):
    """Overrides of a run whose prompts draw one of two sizes."""

    def make(name, **extra):
        settings = settings_of(name) | {
            "rewards": [REWARDS.get(name, "brightness")],
            "data.prompts_per_iteration": 4,
            "data.sizes": list(SIZES[name]),
        }
        if name == "stable_audio":
            settings["evaluation.diversity_prompts"] = 0
        return settings | extra

    return make


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("flow-grpo", "sd3"),
        ("mix-grpo", "flux"),
        ("diffusion-nft", "wan"),
        *(
            pytest.param(recipe, name, marks=pytest.mark.slow)
            for recipe, name in (
                ("diffusion-nft", "sd3"),
                ("mix-grpo", "sd3"),
                ("flow-grpo", "flux"),
                ("diffusion-nft", "flux"),
                ("flow-grpo", "wan"),
                ("mix-grpo", "wan"),
                ("flow-grpo", "stable_audio"),
                ("op-grpo", "sd3"),
            )
        ),
    ],
)
def test_an_iteration_of_two_sizes_learns_from_both(recipe, name, sized, tmp_path):
    loaded = load_recipe(find_recipe(recipe), sized(name, **OF_RECIPE.get(recipe, {})))
    drawn = {slot: sizes_drawn(loaded, slot) for slot in range(loaded.iterations)}
    assert all(len(sizes) == 2 for sizes in drawn.values())
    run = train(loaded, tmp_path / "run")
    for line in (m for m in metrics_of(run) if m["event"] == "train"):
        assert line["grad_norm"] > 0 and line["samples"] == 16
        if recipe != "op-grpo":  # replayed samples are of older weights
            assert line.get("ratio_deviation", 0) < 1e-6
        # All passes of the rollout and of the update, as the plan counts them.
    if recipe == "flow-grpo":
        policy = load_policy(loaded)
        assert line["evaluations"] == batch_plan(loaded, policy).evaluations


def sizes_drawn(recipe, iteration):
    prompts = [Prompt(str(number)) for number in range(8)]
    return {str(p.metadata) for p in draw_prompts(prompts, recipe.data, recipe.seed, iteration)}


@pytest.mark.parametrize("weights", ["replicated", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_on_two_sizes_as_one_does(weights, sized, tmp_path):
    settings = sized(
        "sd3", **{"iterations": 2, "optim.micro_batch": 2, "rollout.micro_batch": 4}, **PROPORTIONAL
    )
    recipe = load_recipe(find_recipe("flow-grpo"), settings)
    assert sizes_drawn(recipe, 0) != sizes_drawn(recipe, 3) or len(sizes_drawn(recipe, 0)) == 2
    train(recipe, tmp_path / "one")
    on_two = load_recipe(find_recipe("flow-grpo"), settings | {"parallel.weights": weights})
    on_processes(2, lambda: train(on_two, tmp_path / "two"), timeout=400)
    assert_close_runs(tmp_path / "one", tmp_path / "two")
    assert {line["processes"] for line in trains(tmp_path / "two")} == {2}


def test_a_run_of_two_sizes_that_was_killed_goes_on_bit_for_bit(sized, tmp_path):
    settings = sized(
        "sd3", **{"iterations": 3, "run.save_every": 2, "evaluation.every": 2, **OF_RECIPE["op-grpo"]}
    )
    recipe = load_recipe(
        find_recipe("op-grpo"), settings | {"iterations": 3}
    )  # with its buffer of both sizes
    whole = train(recipe, tmp_path / "whole")
    train_until_killed(recipe, tmp_path / "killed", iteration=3)
    assert_same_run(resumed(tmp_path / "killed"), whole)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("sd3", {"height": 32}, r"rows.jsonl:2: height=32 without a width; give both, or neither"),
        ("sd3", {"width": 32}, r"rows.jsonl:2: width=32 without a height; give both, or neither"),
        ("sd3", {"height": "32", "width": 32}, r"rows.jsonl:2: height='32' is no whole number above 0"),
        (
            "sd3",
            {"num_frames": 5},
            r"rows.jsonl:2: num_frames: StableDiffusion3Pipeline takes no 'num_frames'",
        ),
        (
            "flux",
            {"height": 34, "width": 32},
            r"rows.jsonl:2: height=34: FluxPipeline needs multiples of 4; give 32",
        ),
        ("sd3", {"height": 34, "width": 32}, r"rows.jsonl:2: .*divisible by 4"),
        (
            "wan",
            {"num_frames": 6},
            r"rows.jsonl:2: num_frames=6: WanPipeline needs multiples of 4, and 1 more; give 5 or 9",
        ),
        ("sd3", {"audio_seconds": 1}, r"rows.jsonl:2: audio_seconds: StableDiffusion3Pipeline takes no"),
    ],
)
def test_a_row_with_a_size_that_cannot_be_is_named_by_its_line(name, row, message, tiny_policy_of, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b"} | row) + "\n")
    with pytest.raises(UserError, match=message):
        tiny_policy_of(name).sizes_of(load_prompts(str(file), None))


def test_a_size_of_the_recipe_that_cannot_be_is_named_before_anything_is_written(sized, tmp_path):
    for sizes, message in (
        ([{"height": 32, "width": 34}], r"data\.sizes\.0: width=34: FluxPipeline needs multiples of 4"),
        ([{"height": 32}], "data.sizes.0: height and width come together"),
        ([{}], "data.sizes.0: empty; give height, width, num_frames or audio_seconds"),
    ):
        with pytest.raises(UserError, match=message):
            train(
                load_recipe(find_recipe("flow-grpo"), sized("flux") | {"data.sizes": sizes}), tmp_path / "run"
            )
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"parallel\.ulysses=2: tokens are checked for one size of samples"):
        load_recipe(find_recipe("flow-grpo"), sized("flux", **{"parallel.ulysses": 2}))
    with pytest.raises(UserError, match=r"data\.sizes: samples of model\.kind='miniature' have one size"):
        load_recipe("flow-grpo", {"data.sizes": [{"num_frames": 5}]})


def test_the_plan_counts_the_largest_size_and_rows_keep_their_own(sized, settings_of):
    recipe = load_recipe(find_recipe("flow-grpo"), sized("sd3"))
    policy = load_policy(recipe)
    alone = load_recipe(
        find_recipe("flow-grpo"),
        settings_of("sd3") | {"data.prompts_per_iteration": 4, "rewards": ["brightness"]},
    )
    # 32 x 48 pixels of the larger size, 32 x 32 of the model's own.
    assert batch_plan(recipe, policy).stored_bytes == 1.5 * batch_plan(alone, policy).stored_bytes
    own = Prompt("a", {"height": 64, "width": 64})
    assert batch_plan(recipe, policy, 1, [own]).stored_bytes == 4 * batch_plan(alone, policy).stored_bytes
    assert own in draw_prompts([own] * 3, recipe.data, 0, 0)
