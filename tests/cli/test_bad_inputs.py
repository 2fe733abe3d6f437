"""What a user can get wrong: one clear line a problem on stderr, exit code 2, nothing lost."""

import fcntl
import json
import resource
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from thalweg.training.folder.saved import load_run
from thalweg.training.loop import resume, train
from training.small_runs import iterations_saved, metrics_of


def refused(outcome, *words):
    """Exit code 2 and a single problem that says all these words."""
    assert outcome.code == 2, outcome.err + outcome.out
    problems = outcome.problems
    if len(problems) == 2 and problems[0].endswith(": 1 problem"):
        problems = problems[1:]
    assert len(problems) == 1, outcome.err
    for word in words:
        assert word in problems[0]


RECIPES = {
    "misspelt key": (
        ["optim.learning_rat=1"],
        "optim.learning_rat",
        "no such key in Optim",
        "'learning_rate'",
    ),
    "misspelt section": (["rolout.steps=4"], "rolout", "no such key in Recipe", "did you mean 'rollout'?"),
    "misspelt key of a kind": (
        ["rollout.kernel.nosie_level=1"],
        "rollout.kernel.nosie_level",
        "no such key in FlowSDE",
        "did you mean 'noise_level'?",
    ),
    "no number": (["optim.learning_rate=fast"], "optim.learning_rate", "expected a number, got 'fast'"),
    "no whole number": (["iterations=ten"], "iterations", "expected a whole number, got 'ten'"),
    "a fraction": (["iterations=2.5"], "iterations", "2.5"),
    "no truth": (
        ["selection.drop_zero=perhaps"],
        "selection.drop_zero",
        "expected true or false, got 'perhaps'",
    ),
    "out of range": (
        ["selection.trained_fraction=1.5"],
        "selection.trained_fraction",
        "less than or equal to 1",
        "1.5",
    ),
    "not a number": (["objective.clip_range=.nan"], "objective.clip_range", "finite"),
    "unknown choice": (["credit.std=batch"], "credit.std", "'group'", "'global'", "'none'", "'batch'"),
    "unknown kind": (
        ["objective.kind=clipped_rato"],
        "objective.kind",
        "'clipped_rato'",
        "mean 'clipped_ratio'?",
    ),
    "no kind": (["rollout.kernel={noise_level: 1}"], "rollout.kernel.kind: missing"),
    "unknown world": (["model.world=scense"], "model.world", "'scense'", "did you mean 'scenes'?"),
    "unknown reward": (["rewards=[scense]"], "rewards.0", "'scense'", "did you mean 'scenes'?"),
    "no module of that name": (["rewards=['nowhere:judge']"], "rewards.0", "nowhere"),
    "no function of that name": (["rewards=['math:judge']"], "rewards.0", "judge"),
    "no rewards": (["rewards=[]"], "rewards: empty", "give at least one"),
    "the same reward twice": (["rewards=[scenes, scenes]"], "rewards: two have the same name", "scenes"),
    "a group of one": (["rollout.group_size=1"], "rollout.group_size=1", "a group of one", "give 2 or more"),
    "groups that do not divide": (["rollout.seed_groups=3"], "seed_groups=3", "does not divide group_size=4"),
    "more updates than samples": (["optim.updates_per_iteration=9"], "=9", "only 8 samples", "give fewer"),
    "kernel missing": (["rollout.kernel=null"], "kernel is missing", "'all_steps' draws steps", "flow_sde"),
    "kernel superfluous": (["rollout.plan={kind: deterministic}"], "kernel 'flow_sde' would never act"),
    "densities of a deterministic plan": (
        ["rollout.plan={kind: deterministic}", "rollout.kernel=null"],
        "'clipped_ratio' needs the densities of drawn steps",
        "'deterministic' draws none",
    ),
    "steps without noise": (["rollout.kernel.noise_level=0"], "rollout.kernel", "no density", "noise_level"),
    "one step": (["rollout.steps=1"], "rollout.steps=1", "the last step is never trained", "give 2 or more"),
    "a solver of two calls": (["rollout.solver={kind: heun}"], "'heun'", "use euler or dpm_solver"),
    "an empty window": (
        ["rollout.plan={kind: window, size: 0}"],
        "rollout.plan.size",
        "greater than or equal to 1",
    ),
    "a window past the end": (["rollout.plan={kind: window, size: 8}"], "size=8", "reaches past step 6"),
    "too many branches": (
        ["rollout.plan={kind: branch, num_branch_steps: 9}"],
        "=9",
        "only 7 steps may branch",
    ),
    "branches that do not divide": (
        ["rollout.plan={kind: branch, num_branch_steps: 3}", "rollout.seed_groups=1"],
        "num_branch_steps=3 does not divide the 4 samples",
    ),
    "unknown weights in rollout": (
        ["rollout.weights=olf"],
        "rollout.weights",
        "'olf'",
        "add them under `weights`",
    ),
    "unknown weights in evaluation": (["evaluation.weights=ema"], "evaluation.weights", "'ema'"),
    "unknown weights of the objective": (["objective.kl_weight=1", "objective.reference=base"], "'base'"),
    "weights from unknown ones": (["weights.reference.from=base"], "weights.reference.from", "'base'"),
    "weights from later ones": (
        ["weights.a={from: b, update: {kind: frozen}}", "weights.b={update: {kind: frozen}}"],
        "weights.a.from: 'b' comes later",
    ),
    "the trained weights again": (
        ["weights.policy={update: {kind: frozen}}"],
        "weights.policy",
        "choose another",
    ),
    "weights that name no file": (["weights.a/b={update: {kind: frozen}}"], "'a/b' cannot name a file"),
    "chunks that do not add up": (
        ["objective={kind: chunk_ratio, chunks: [2, 2]}"],
        "objective.chunks=[2, 2] adds up to 4 steps",
        "trains 7",
    ),
    "diversity of one image": (["evaluation.diversity_group=1"], "evaluation.diversity_group=1", "2 or more"),
    "no sign": (["iterations"], "'iterations'", "an override is key=value"),
    "no YAML": (["rewards=[scenes"], "the value is not YAML"),
    "a key below a number": (
        ["iterations.x.y=1"],
        "iterations",
        "expected a whole number, got {'x': {'y': 1}}",
    ),
}


STEPS_REWARD = "rewards=[brightness, {kind: scorer, at: steps}]"
STEPWISE = "evaluation.stepwise={reward: scenes_scorer}"
TREE = "rollout.plan={kind: tree, branching: 2, size: 2, forks: [0, 1]}"
NFT = [
    "rollout.plan={kind: deterministic}",
    "rollout.kernel=null",
    "objective={kind: forward, rule: {kind: implicit}}",
    "weights.old={update: {kind: copy}}",
]
RECIPES |= {
    "a tree of no children": (
        ["rollout.plan={kind: tree, branching: 0}"],
        "branching",
        "equal to 1",
        "got 0",
    ),
    "forks outside the window": (
        ["rollout.plan={kind: tree, branching: 2, size: 3, forks: [1, 3]}", "rollout.seed_groups=1"],
        "rollout.plan.forks=[1, 3]",
        "0 .. 2; move them there",
    ),
    "a tree without forks": (
        ["rollout.plan={kind: tree, branching: 2, forks: []}", "rollout.seed_groups=1"],
        "rollout.plan.forks=[]",
    ),
    "a tree that does not fill the group": (
        ["rollout.plan={kind: tree, branching: 3, forks: [0]}", "rollout.seed_groups=1"],
        "branching=3 at 1 steps ends in 3 samples",
        "is 4; make them equal",
    ),
    "a tree past the end": (
        ["rollout.plan={kind: tree, branching: 2, size: 2, start: 6, move: fixed}", "rollout.seed_groups=1"],
        "size=2 from start=6 reaches past step 6",
    ),
    "tree credit without a tree": (["credit={kind: tree}"], "'tree' credits the edges of a tree"),
    "a tree summed after normalising at steps": (
        [TREE, "rollout.seed_groups=1", "credit={kind: tree, normalize_at: step, combine: sum_advantages}"],
        "credit",
        "use combine=sum_rewards",
    ),
    "chunks of prompts with windows of their own": (
        [
            "rollout.plan={kind: window, size: 2, move: random, per_prompt: true}",
            "objective={kind: chunk_ratio, chunks: [2]}",
        ],
        "train the same steps in a row",
        "without per_prompt",
    ),
    "chunks of a tree": (
        [TREE, "rollout.seed_groups=1", "objective={kind: chunk_ratio, chunks: [2]}"],
        "train the same steps in a row",
    ),
    "a window for each prompt that is not drawn": (
        ["rollout.plan={kind: window, size: 1, per_prompt: true}"],
        "per_prompt needs a window that is drawn",
        "move=random",
    ),
    "probes that nobody reads": (["rollout.probes=true"], "rollout.probes: only credit 'dense' reads them"),
    "dense credit without probes": (["credit={kind: dense}"], "set rollout.probes=true"),
    "process credit without a reward of states": (
        ["credit={kind: process}"],
        "'process' reads a reward of noisy states",
        "{kind: scorer, at: steps}",
    ),
    "process credit of states that no step leads to": (
        [STEPS_REWARD, "credit={kind: process, sigma_max: 0.1}"],
        "credit.sigma_max=0.1",
        "its last leads to 0.125",
    ),
    "process credit of nothing": (
        ["credit={kind: process, outcome_weight: 0, process_weight: 0}"],
        "credit",
        "are both 0",
    ),
    "an evaluation that other weights make whole": (
        ["weights.base={update: frozen}", "evaluation.finish={weights: base, steps: 2}"],
        "evaluation",
        "finish.steps=2 of steps=2",
        "give fewer",
    ),
    "an evaluation that weights finish which are not there": (
        ["evaluation.finish={weights: base, steps: 1}"],
        "evaluation.finish.weights: no weights are called 'base'",
        "add them under `weights`",
    ),
    "an evaluation made twice": (
        ["weights.base={update: frozen}", "evaluation.finish={weights: base, steps: 1}", STEPWISE],
        "finish and stepwise",
        "leave one out",
    ),
    "step-wise sampling without its reward": (
        [STEPWISE],
        "evaluation.stepwise.reward='scenes_scorer'",
        "add one, such as {kind: scorer, at: steps}",
    ),
    "odds for other chunks": (
        ["objective={kind: chunk_ratio, chunks: [3, 4], chunk_weights: [1]}"],
        "objective",
        "1 odds for 2 chunks",
    ),
    "a reward of states that nobody reads": (
        [STEPS_REWARD],
        "rewards: 'scenes_scorer' judges noisy states, which only credit 'process'",
    ),
    "no reward of samples": (
        ["rewards=[{kind: scorer, at: steps}]", "credit={kind: process, outcome_weight: 0}"],
        "rewards: 'scenes_scorer' judges noisy states alone",
        "add one",
    ),
    "a judge of another world": (
        ["model.world=glyphs", "rewards=[scenes]"],
        "judges samples of the world 'scenes', and the model makes those of 'glyphs'",
        "give rewards=[glyphs], or model.world=scenes",
    ),
    "a scorer of a world without one": (
        ["rewards=[{kind: scorer, world: glyphs}]"],
        "the world 'glyphs' has no scorer",
        "scenes",
    ),
    "candidates that nobody judges": (
        ["rollout.plan={kind: candidates, num_candidates: 2}"],
        "'candidates' end where they are judged",
        "compare: siblings",
    ),
    "candidates that share noise": (
        [
            "rollout.plan={kind: candidates, num_candidates: 2}",
            "rollout.seed_groups=2",
            STEPS_REWARD,
            "credit={kind: process, compare: siblings}",
        ],
        "ends in one sample, not 2",
    ),
    "guidance by no reward": (
        ["rollout.guidance={reward: scenes_scorer}"],
        "rollout.guidance.reward='scenes_scorer': no reward of noisy states is called that",
    ),
    "guidance by another reward": (
        [STEPS_REWARD, "rollout.guidance={reward: scene_scorer}", "credit={kind: process}"],
        "'scene_scorer'",
        "did you mean 'scenes_scorer'?",
    ),
    "guidance of nothing drawn": ([*NFT, "rollout.guidance={reward: r}"], "guidance steers drawn steps"),
    "guidance of steps that are not": (
        [STEPS_REWARD, "rollout.guidance={reward: scenes_scorer, steps: [6, 7]}", "credit={kind: process}"],
        "guidance.steps=[6, 7]: drawn steps are 0 .. 6",
    ),
    "no step to train on": (
        ["rollout.plan={kind: window, size: 1, start: 5, move: fixed}", "selection.sigma_min=0.5"],
        "selection: sigma_min=0.5",
        "all trained steps [5]",
    ),
    "replay with stored log-probs": (["replay={}"], "replay: rows of earlier", "old_log_prob=recompute"),
    "replay without means": (
        ["replay={}", "objective.old_log_prob=recompute", "objective.ratio=guard"],
        "replay: rows of earlier",
    ),
    "correction of stored log-probs": (["objective.correction={}"], "set old_log_prob=recompute"),
    "perturbed conditions under a ratio": (
        ["rollout.perturbation={}"],
        "rollout.perturbation: samples are drawn under other conditions",
        "such as nft",
    ),
    "exploring drawn steps": (
        ["rollout.explore={pool: 8, steps: 2}"],
        "rollout.explore: a sample can be drawn again from its initial noise alone",
    ),
    "a pool that is too small": (
        [*NFT, "rollout.explore={pool: 3, steps: 2}"],
        "explore.pool=3: fewer than the 4 initial noises",
    ),
    "exploring by unknown weights": (
        [*NFT, "rollout.explore={pool: 8, steps: 2, weights: cheap}"],
        "rollout.explore.weights",
        "'cheap'",
    ),
    "a tail after windows of prompts": (
        ["rollout.plan={kind: window, size: 1, move: random, per_prompt: true}", "rollout.tail=0.5"],
        "tail shortens what follows the last drawn step",
    ),
    "a tail of nothing drawn": ([*NFT, "rollout.tail=0.5"], "tail shortens"),
    "more of the best than there are": (
        ["selection.best_of=5"],
        "selection.best_of=5: a prompt has only 4 samples",
    ),
    "samples of a tree that share their steps": (
        [
            "rollout.plan={kind: tree, branching: 2, forks: [0, 1]}",
            "rollout.seed_groups=1",
            "selection.best_of=2",
        ],
        "selection.best_of: chooses for each sample, and the samples of a tree share their steps",
        "width_prune",
    ),
    "width of no tree": (["selection.width_prune=extremes"], "selection.width_prune: prunes a tree"),
    "depths that move towards data": (["selection.depth_prune={start: 2, stop: 4}"], "moves towards 0"),
    "selected steps of whole samples": (
        [*NFT, "selection.sigma_min=0.5"],
        "selection.sigma_min: acts on trained steps",
    ),
    "two clips": (["objective.clip_nats=1"], "clip_nats stands in place of clip_range"),
    "bounds the wrong way round": (["objective.clip_range_max=1e-5"], "is less than clip_range"),
}


FORWARD = {
    "a pair in a group of one": (
        ["objective.rule={kind: preference}", "rollout.group_size=1", "weights.reference.update=frozen"],
        "rollout.group_size=1",
        "a group of one",
    ),
    "a pair in a group of one, without a std": (
        [
            "objective.rule={kind: preference}",
            "rollout.group_size=1",
            "credit.std=none",
            "weights.reference.update=frozen",
        ],
        "rollout.group_size=1",
        "a group of one",
    ),
    "more updates than groups": (
        ["objective.rule={kind: centred}", "selection.drop_zero=false", "optim.updates_per_iteration=3"],
        "=3",
        "only 2 groups, which stay whole",
        "give fewer",
    ),
    "groups by more than the prompt": (
        ["objective.rule={kind: centred}", "selection.drop_zero=false", "credit.group_by=[prompt, seed]"],
        "credit.group_by=['prompt', 'seed']",
        "compares the samples of a prompt",
        "use [prompt]",
    ),
    "a part of each sample of a group": (
        ["objective.rule={kind: centred}", "selection.drop_zero=false", "selection.trained_fraction=0.5"],
        "selection.trained_fraction=0.5",
        "at the same levels; give 1",
    ),
    "a mean over half a group": (["objective.rule={kind: centred}"], "selection.drop_zero", "give false"),
    "weights of a rule that are nowhere": (
        ["objective.rule={kind: preference}"],
        "objective, weights 'reference'",
        "add them under `weights`",
    ),
    "weights of a pull that are nowhere": (
        ["objective.pulls=[{to: odl, weight: 1}]"],
        "objective, weights 'odl'",
        "did you mean 'old'?",
    ),
    "unknown schedule": (["weights.old.update=slwo"], "weights.old.update", "'slwo'", "mean 'slow'?"),
    "unknown rule": (["objective.rule.kind=implict"], "objective.rule.kind", "mean 'implicit'?"),
    "unknown key of a rule": (["objective.rule.bta=1"], "objective.rule.bta", "Implicit", "mean 'beta'?"),
    "unknown surrogate": (["objective.surrogate.weighting=elob"], "objective.surrogate.weighting", "'elob'"),
    "an elbo at the data": (
        ["objective.surrogate.weighting=elbo", "objective.sigmas.sigma_min=0"],
        "grows as 1/sigma, and sigmas 'stratified' may go down to 0",
        "sigma_min=0.01",
    ),
    "an elbo at the data end of the grid": (
        [
            "objective.surrogate.weighting=elbo",
            "objective.sigmas={kind: grid}",
            "rollout.steps=128",
        ],
        "the rollout has a level of 0.0078",
        "give a smaller noisy_fraction",
    ),
    "an elbo of one model": (
        ["objective.surrogate.weighting=elbo", "objective.rule={kind: weighted}"],
        "name weights in rule.old",
    ),
    "states at other levels than the rollout's": (
        ["objective.noise=path"],
        "noise='path' has states at the rollout's levels alone, and sigmas 'stratified'",
        "use sigmas={kind: grid}",
    ),
    "a log-ratio to nothing": (
        ["objective.rule={kind: weighted, log_ratio_weight: 1}"],
        "objective.rule",
        "name them in `old`",
    ),
    "a stop of pairs": (
        ["objective.rule={kind: preference, stop_range: 0.1}"],
        "stop_range acts on groups alone",
    ),
    "more levels than the rollout has": (
        ["objective.sigmas={kind: grid, num_sigmas: 7, noisy_fraction: 0.75}"],
        "objective.sigmas.num_sigmas=7",
        "only 6 levels",
        "give fewer",
    ),
    "own noise of a drawn path": (
        ["objective.noise=rollout", "rollout.plan={kind: all_steps}", "rollout.kernel={kind: flow_sde}"],
        "objective.noise='rollout'",
        "'all_steps' draws more noise",
    ),
    "weights of steps": (["selection.step_weight=noise"], "selection.step_weight", "trains whole samples"),
}


@pytest.mark.parametrize(("overrides", "words"), [(r[0], r[1:]) for r in FORWARD.values()], ids=FORWARD)
def test_a_forward_recipe_that_cannot_be_is_refused(overrides, words, train, tmp_path):
    refused(train("diffusion-nft", *overrides, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["selection.drop_zero=true"], ["selection.drop_zero", "those of advantage 0 too"]),
        (["rollout.plan={kind: branch, num_branch_steps: 2}"], ["'balance' needs every sample to train"]),
        (["selection.trained_fraction=0.5"], ["'balance' needs every sample to train"]),
    ],
)
def test_a_balance_without_all_steps_of_all_samples_is_refused(overrides, words, train, tmp_path):
    refused(train("tmpo", *overrides, "--out", tmp_path / "run"), *words)


@pytest.mark.parametrize(("overrides", "words"), [(r[0], r[1:]) for r in RECIPES.values()], ids=RECIPES)
def test_a_recipe_that_cannot_be_is_refused(overrides, words, train, tmp_path):
    refused(train("flow-grpo", *overrides, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_every_problem_of_a_recipe_gets_its_line(train):
    outcome = train(
        "flow-grpo", "objective.kind=nfft", "rollout.kernel.nosie_level=1", "optim.max_grad_norm=1.0x"
    )
    assert outcome.code == 2
    title, *problems = outcome.problems
    assert title == "flow-grpo: 3 problems"
    assert sorted(p.split(":")[0].strip() for p in problems) == [
        "objective.kind",
        "optim.max_grad_norm",
        "rollout.kernel.nosie_level",
    ]


def test_unknown_recipes_are_refused_with_the_nearest_name(thalweg):
    refused(
        thalweg("train", "mix-gpro"), "recipe 'mix-gpro'", "did you mean 'mix-grpo'?", "`thalweg methods`"
    )
    refused(thalweg("train", "mine.yaml"), "recipe 'mine.yaml': no such file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"title: [", ["not YAML", "mend the file"]),
        (b"- title\n- paper\n", ["a recipe is a mapping"]),
        (b"", ["a recipe is a mapping"]),
        (b"title: \xff\xfe\x00", ["not YAML", "utf-8"]),
    ],
)
def test_files_that_are_no_recipe_are_refused(text, words, thalweg, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text)
    refused(thalweg("train", file), str(file), *words)


def test_what_a_recipe_lacks_is_named(thalweg, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("title: t\npaper: p\niterations: 1\n")
    outcome = thalweg("train", file)
    assert outcome.code == 2
    lacking = {"model", "rollout", "rewards", "objective", "optim"}
    assert {line.split(":")[0].strip() for line in outcome.problems[1:]} == lacking
    assert all("missing; it has no default, so give one" in line for line in outcome.problems[1:])


PROMPTS = {
    "missing": ("none.txt", None, ["no such file", "none.txt"]),
    "empty": ("p.txt", "\n\n", ["the file holds no prompt", "at least one line"]),
    "suffix": ("p.csv", "a red square\n", ["cannot read '.csv' files", ".txt or .jsonl"]),
    "unknown word": (
        "p.txt",
        "a red square\na red sqare\n",
        ["p.txt:2", "no such word 'sqare'", "'square'?"],
    ),
    "too long": ("p.txt", "a a a a a a a a a a\n", ["p.txt:1", "10 words", "at most 9"]),
    "broken line": ("p.jsonl", '{"text": "a red square"}\n{"text": \n', ["p.jsonl:2", "not a JSON object"]),
    "no text": ("p.jsonl", '{"prompt": "a red square"}\n', ["p.jsonl:1", "an object with a string 'text'"]),
    "no object": ("p.jsonl", '"a red square"\n', ["p.jsonl:1", "an object with a string 'text'"]),
}


@pytest.mark.parametrize("key", ["data.prompts", "evaluation.prompts"])
@pytest.mark.parametrize(("name", "text", "words"), PROMPTS.values(), ids=PROMPTS)
def test_prompts_that_cannot_be_read_are_refused(key, name, text, words, train, tmp_path):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    outcome = train("flow-grpo", f"{key}={file}", "--out", tmp_path / "run")
    refused(outcome, *words)
    assert key in outcome.err or f"{name}:" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "prompt", "key", "lacking"),
    [
        (["data.prompts={file}", "rewards=[scenes]"], "a red square", "data.prompts", "specification"),
        (["evaluation.prompts={file}"], "a red square", "evaluation.prompts", "specification"),
        (["data.prompts={file}", "model.world=glyphs", "rewards=[glyphs]"], "A C", "data.prompts", "text"),
    ],
)
def test_prompts_that_a_judge_cannot_judge_are_refused(overrides, prompt, key, lacking, train, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text(f"{prompt}\n")
    typed = [text.format(file=file) for text in overrides]
    outcome = train("flow-grpo", *typed, "--out", tmp_path / "run")
    refused(outcome, f"{key}: prompt '", f"has no '{lacking}' in its metadata", "judge of world", ".jsonl")
    assert not (tmp_path / "run").exists()


def test_held_out_prompts_need_the_task_that_accuracy_is_told_apart_by(train, tmp_path):
    file = tmp_path / "p.jsonl"
    red = {"shape": "square", "color": "red", "size": None, "count": 1}
    specification = {"task": "colors", "objects": [red], "relation": None, "background": None}
    file.write_text(json.dumps({"text": "a red square", "specification": specification}) + "\n")
    both = ["rewards=[scenes]", f"data.prompts={file}"]
    assert train("flow-grpo", *both, "--out", tmp_path / "run").code == 0
    refused(train("flow-grpo", f"evaluation.prompts={file}"), "evaluation.prompts: prompt", "has no 'task'")


def test_prompts_that_are_not_text_are_refused(train, tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes(b"a red square\xff\n")
    refused(train("flow-grpo", f"data.prompts={file}"), "not UTF-8 text", str(file))


REWARDS = {
    "raises": (
        "raise ZeroDivisionError('by nothing')",
        ["raised ZeroDivisionError: by nothing", "mend the function"],
    ),
    "gives NaN": (
        "return [float('nan')] * len(images)",
        ["returned nan for 8 of 8 images", "invalid_rewards=drop"],
    ),
    "gives infinity": ("return [float('inf')] * len(images)", ["returned inf for 8 of 8 images"]),
    "gives a wrong shape": ("return [1.0]", ["returned shape (1,) for 8 images", "one number an image"]),
    "gives text": ("return 'good'", ["returned str", "does not read as numbers"]),
    "gives nothing": ("return None", ["returned NoneType", "does not read as numbers"]),
}


@pytest.mark.parametrize(("body", "words"), REWARDS.values(), ids=REWARDS)
def test_a_reward_that_fails_while_training_is_named_and_what_was_saved_stays(
    body, words, train, thalweg, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # Fails in the second iteration: the first evaluation sees 6 held-out images, an iteration 8.
    (tmp_path / "own.py").write_text(
        "calls = []\n"
        "def judge(images, prompts):\n"
        "    calls.append(len(images))\n"
        "    if calls.count(8) == 2:\n"
        f"        {body}\n"
        "    return images.flatten(1).mean(1)\n"
    )
    try:
        outcome = train("flow-grpo", "rewards=['own:judge']", "run.save_every=1", "--out", "run")
    finally:
        sys.modules.pop("own", None)
    refused(outcome, "reward 'judge'", *words)
    assert iterations_saved(tmp_path / "run") == [1]
    (tmp_path / "own.py").write_text("def judge(images, prompts):\n    return images.flatten(1).mean(1)\n")
    try:
        assert thalweg("resume", "run").code == 0
    finally:
        sys.modules.pop("own", None)
    assert [line["iteration"] for line in metrics_of(tmp_path / "run") if line["event"] == "train"] == [1, 2]


def test_samples_whose_reward_is_missing_are_left_out_where_the_recipe_says_so(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sparse.py").write_text(
        "def judge(images, prompts):\n"
        "    bright = images.flatten(1).mean(1)\n"
        "    bright[0] = float('nan')\n"
        "    return bright\n"
    )
    try:
        overrides = ["rewards=['sparse:judge']", "run.invalid_rewards=drop", "iterations=1"]
        outcome = train("flow-grpo", *overrides, "--out", "run")
    finally:
        sys.modules.pop("sparse", None)
    assert outcome.code == 0, outcome.err
    line = next(line for line in metrics_of(tmp_path / "run") if line["event"] == "train")
    assert line["invalid_rewards"] == 1
    assert line["backwards"] == 7 * 7  # of 8 samples, 7 are trained, at 7 steps


class TestFolders:
    def test_a_folder_that_holds_a_run_is_refused(self, run, train):
        before = (run / "metrics.jsonl").read_text()
        refused(train("mix-grpo", "--out", run), "holds a run already", f"`thalweg resume {run}`", "--out")
        assert (run / "metrics.jsonl").read_text() == before

    def test_a_folder_that_is_not_empty_is_refused(self, train, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes").write_text("precious")
        refused(train("flow-grpo", "--out", tmp_path / "mine"), "is not empty", "--out")
        assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes"]

    def test_a_file_is_no_folder(self, train, tmp_path):
        (tmp_path / "file").write_text("precious")
        refused(train("flow-grpo", "--out", tmp_path / "file"), "is a file", "--out")
        refused(train("flow-grpo", "--out", tmp_path / "file" / "run"), "cannot be written", "--out")
        assert (tmp_path / "file").read_text() == "precious"

    def test_a_run_that_is_in_use_is_refused_and_keeps_its_recipe(self, run, thalweg):
        before = (run / "recipe.yaml").read_text()
        with (run / ".lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            refused(
                thalweg("resume", run, "iterations=9"), "another process is training there", "stop it first"
            )
        assert (run / "recipe.yaml").read_text() == before
        assert thalweg("resume", run, "iterations=3").code == 0

    def test_a_folder_without_a_run_is_refused_by_every_command_that_reads_one(self, thalweg, tmp_path):
        for command in ("resume", "report"):
            refused(thalweg(command, tmp_path), "no run there", "recipe.yaml is missing")
        refused(thalweg("sample", tmp_path / "nothing", "a red square"), "nothing", "none of that name")

    def test_images_that_cannot_be_written_are_refused(self, thalweg, tiny_world, tmp_path):
        (tmp_path / "file").write_text("")
        refused(
            thalweg("sample", "flow-grpo", "a red square", "--out", tmp_path / "file" / "x"),
            "cannot be written",
            "--out",
        )


class TestCheckpoints:
    def test_a_damaged_file_of_tensors_is_named_and_the_checkpoint_before_it_serves(self, run, thalweg):
        for name in ("weights.policy.safetensors", "optimizer.safetensors"):
            file = run / "checkpoints" / "00000002" / name
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            refused(
                thalweg("resume", run, "iterations=3"), str(file), "missing or damaged", "from the one before"
            )
            file.write_bytes(whole)
        shutil.rmtree(run / "checkpoints" / "00000002")
        assert thalweg("resume", run, "iterations=3").code == 0
        assert [line["iteration"] for line in metrics_of(run) if line["event"] == "train"] == [1, 2, 3]

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "iteration": 2, "epoch": 1}', None])
    def test_a_damaged_state_is_named(self, text, run, thalweg):
        file = run / "checkpoints" / "00000002" / "state.json"
        file.unlink() if text is None else file.write_text(text)
        refused(
            thalweg("resume", run, "iterations=3"),
            "00000002: state.json is missing or damaged",
            "remove the folder to resume from the checkpoint before it",
        )

    def test_a_state_of_another_format_is_named(self, run, thalweg):
        file = run / "checkpoints" / "00000002" / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
        refused(
            thalweg("resume", run, "iterations=3"), "written in another format", "the version that wrote it"
        )

    def test_a_missing_file_is_named(self, run, thalweg):
        (run / "checkpoints" / "00000002" / "weights.reference.safetensors").unlink()
        refused(thalweg("resume", run, "iterations=3"), "weights.reference.safetensors", "missing or damaged")

    def test_a_checkpoint_of_other_adapters_is_refused_and_the_run_keeps_its_recipe(self, run, thalweg):
        before = (run / "recipe.yaml").read_text()
        refused(
            thalweg("resume", run, "model.lora={rank: 2}", "iterations=3"),
            "holds other parameters than this model",
            "use the model and LoRA settings it was written with",
        )
        assert (run / "recipe.yaml").read_text() == before
        assert thalweg("resume", run, "iterations=3").code == 0

    def test_a_checkpoint_of_another_size_is_refused(self, run, thalweg):
        file = run / "checkpoints" / "00000002" / "weights.policy.safetensors"
        tensors = load_file(file)
        name = next(n for n, t in tensors.items() if t.ndim == 2)
        save_file({**tensors, name: torch.zeros(2, 3)}, file)
        refused(thalweg("resume", run, "iterations=3"), f"'{name}' has shape (2, 3), this model's has")

    @pytest.mark.parametrize(
        ("made", "words"),
        [
            (None, ["no weights there", "give a run, one of its checkpoints, or a safetensors file"]),
            (b"not tensors", ["missing or damaged", "use another file"]),
        ],
    )
    def test_init_that_points_to_no_weights_is_refused(self, made, words, train, tmp_path):
        source = tmp_path / "weights"
        if made is not None:
            source.write_bytes(made)
        refused(train("flow-grpo", f"init={source}", "--out", tmp_path / "run"), str(source), *words)
        assert not (tmp_path / "run").exists()

    def test_init_of_another_model_is_refused(self, run, train, tmp_path):
        outcome = train("flow-grpo", f"init={run}", "model.lora={rank: 2}", "--out", tmp_path / "other")
        refused(outcome, "holds other parameters than this model")


@pytest.fixture
def small_disk():
    """Makes the system refuse any file that grows beyond a number of bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def test_a_save_that_finds_no_room_leaves_earlier_checkpoints_whole(self, run, thalweg, small_disk):
        smallest = min(f.stat().st_size for f in run.glob("checkpoints/00000002/*.safetensors"))
        small_disk(smallest - 1)
        outcome = thalweg("resume", run, "iterations=3")
        small_disk(resource.RLIM_INFINITY)
        refused(
            outcome,
            "00000003: cannot be written",
            "File too large",
            "earlier checkpoints are whole",
            "make room",
        )
        assert iterations_saved(run) == [1, 2]
        assert not list((run / "checkpoints").glob(".partial-*"))
        assert thalweg("resume", run).code == 0
        assert iterations_saved(run)[-1] == 3
        assert [line["iteration"] for line in metrics_of(run) if line["event"] == "train"] == [1, 2, 3]

    def test_metrics_that_find_no_room_stop_the_run_and_it_resumes(self, run, thalweg, small_disk):
        small_disk((run / "metrics.jsonl").stat().st_size + 40)
        outcome = thalweg("resume", run, "iterations=3")
        small_disk(resource.RLIM_INFINITY)
        refused(outcome, "cannot be written (File too large)", f"make room and `thalweg resume {run}`")
        assert thalweg("resume", run).code == 0
        assert [line["iteration"] for line in metrics_of(run) if line["event"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_run_with_a_tracker_that_is_not_installed_is_refused(name, train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = train("flow-grpo", f"run.trackers=[{name}]", "--out", tmp_path / "run")
    refused(outcome, f"run.trackers: '{name}' is not installed", f"pip install 'thalweg[{name}]'")
    assert not (tmp_path / "run").exists()


def test_a_damaged_recipe_of_a_run_is_named(run, thalweg):
    (run / "recipe.yaml").write_text("title: [")
    refused(thalweg("resume", run), str(run / "recipe.yaml"), "not YAML")


def test_an_unknown_word_of_a_prompt_is_named(thalweg, tiny_world):
    refused(
        thalweg("sample", "flow-grpo", "a red sqare"), "'a red sqare'", "no such word 'sqare'", "'square'?"
    )


def test_the_python_calls_raise_what_the_command_line_prints(run, tmp_path):
    recipe = load_run(run).recipe
    with pytest.raises(ValueError, match="holds a run already"):
        train(recipe, run)
    with pytest.raises(ValueError, match="cannot be written"):
        resume(tmp_path / "nowhere", recipe)
