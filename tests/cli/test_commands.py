"""Every command, called as a user types it."""

import json
import re
import sys

import pytest
import yaml
from PIL import Image
from typer.main import get_command

import thalweg as library
from thalweg.cli.app import app
from thalweg.training.recipe.load import full_size_names, recipe_names
from thalweg.training.recipe.schema import Recipe
from training.small_runs import iterations_saved, metrics_of, small, trains

COMMANDS = dict(sorted(get_command(app).commands.items()))
TABLES = {"methods": "recipe", "models": "model", "rewards": "reward", "worlds": "world"}


def test_there_are_the_commands_of_the_documentation():
    expected = {
        "train",
        "resume",
        "sample",
        "eval",
        "report",
        "methods",
        "models",
        "rewards",
        "worlds",
        "doctor",
    }
    assert expected | {"schema"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_shows_an_example(command, thalweg):
    outcome = thalweg(command, "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert re.search(rf"Usage: thalweg {command} .*[A-Z][a-z]+ [^.]+\.", text)
    takes_arguments = any(p.param_type_name == "argument" for p in COMMANDS[command].params)
    assert (f"Example: thalweg {command} " in text) == takes_arguments


def test_help_without_a_command_lists_all_and_says_how_to_start(thalweg):
    outcome = thalweg("--help")
    assert outcome.code == 0
    assert all(command in outcome.out for command in COMMANDS)
    assert "thalweg train diffusion-nft" in outcome.out


def test_help_needs_no_torch(monkeypatch, thalweg):
    # torch takes seconds to import; here importing it again would fail.
    for name in [n for n in sys.modules if n.startswith("thalweg.training") or n == "torch"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert thalweg("--help").code == 0
    assert thalweg("train", "--help").code == 0


@pytest.mark.parametrize(("command", "column"), TABLES.items())
def test_a_table_reads_as_json_and_as_text(command, column, thalweg):
    rows = json.loads(thalweg(command, "--json").out)
    assert rows and all(row[column] for row in rows)
    text = thalweg(command)
    assert text.code == 0
    assert all(row[column].split()[0] in text.out for row in rows)


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_table_that_is_piped_has_a_whole_line_a_row(columns, thalweg, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    lines = thalweg("methods").out.splitlines()
    rows = json.loads(thalweg("methods", "--json").out)
    assert len(lines) == 2 + len(rows)  # a title and the names of the columns
    for line, row in zip(lines[2:], rows, strict=True):
        assert re.split(r"  +", line.strip()) == [text for text in row.values() if text]


def test_the_methods_are_the_shipped_recipes_with_their_papers(thalweg):
    rows = json.loads(thalweg("methods", "--json").out)
    assert [row["recipe"] for row in rows] == [*recipe_names(), *full_size_names()]
    assert next(r for r in rows if r["recipe"] == "flux1-dev/mix-grpo")["model"] == "flux1-dev"
    assert next(r for r in rows if r["recipe"] == "flow-grpo") == {
        "recipe": "flow-grpo",
        "model": "embedded",
        "method": "Flow-GRPO: online policy gradient over the denoising steps of a flow",
        "paper": "Liu et al. 2025, arXiv:2505.05470",
        "plan": "all_steps",
        "objective": "clipped_ratio",
        "status": "runs as it stands",
    }
    unrun = [row["recipe"] for row in rows if row["status"] == "not run at full size by us"]
    assert unrun == full_size_names()


def test_a_training_writes_the_folder_of_a_run(run):
    assert {p.name for p in run.iterdir()} >= {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "report.html",
    }
    facts = json.loads((run / "run.json").read_text())
    assert facts["command"][:3] == ["thalweg", "train", "flow-grpo"]
    assert (facts["name"], facts["seed"], facts["format"]) == ("flow-grpo", 0, 1)
    assert {"python", "torch", "thalweg"} <= facts["versions"].keys()
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["rollout"]["group_size"] == 4
    assert resolved["objective"]["kl"] == "exact"  # a default
    assert [(line["event"], line["iteration"]) for line in metrics_of(run)] == [
        ("eval", 0),
        ("train", 1),
        ("train", 2),
        ("eval", 2),
    ]
    assert "<html" in (run / "report.html").read_text()


def test_a_training_says_what_it_does_line_by_line_and_where_it_ended(train, tmp_path):
    outcome = train("flow-grpo", "--out", tmp_path / "run")
    assert outcome.code == 0
    assert outcome.out == f"{tmp_path}/run: finished; report: {tmp_path}/run/report.html\n"
    lines = [line for line in outcome.err.splitlines() if line]
    assert re.search(
        r"^\d\d:\d\d:\d\d 0/2  accuracy 0\.\d+  held-out reward \d\.\d+  diversity \d\.\d+$", lines[0]
    )
    assert re.search(r"^\d\d:\d\d:\d\d 1/2  reward \d\.\d+  \d+ images/s  \d+\.\d min left$", lines[1])
    assert len(lines) == 4


def test_a_run_goes_to_a_folder_of_its_recipe_and_time_where_none_is_given(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train("flow-grpo", "iterations=0").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"flow-grpo-\d{8}-\d{6}", folder.name)


@pytest.mark.parametrize("recipe", ["flow-grpo", "mix-grpo", "dance-grpo", "gcpo", "diffusion-nft"])
def test_a_dry_run_writes_nothing_and_tells_the_passes_an_iteration_takes(
    recipe, train, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    changes = ["iterations=1", *(["objective.chunk_fraction=1"] if recipe == "gcpo" else [])]
    told = train(recipe, *changes, "--dry-run", "--out", "run")
    assert told.code == 0
    assert list(tmp_path.iterdir()) == []
    resolved = yaml.safe_load(told.out)  # the plan follows as comments
    assert resolved["rollout"]["group_size"] == 4
    assert "2 prompts x 4 = 8 samples on 1 process(es)" in told.out
    most = "(?:at most )?"  # samples that learn nothing may be left out
    passes = re.search(
        rf"(\d+) in the rollout, {most}(\d+) with gradient, {most}(\d+) of anchors and sweeps; "
        rf"{most}(\d+) forwards in all",
        told.out,
    )
    assert passes is not None
    rollout, with_gradient, others, forwards = map(int, passes.groups())
    assert train(recipe, *changes, "--out", "run").code == 0
    (line,) = trains(tmp_path / "run")
    assert (line["evaluations"], line["backwards"]) == (forwards, with_gradient)
    assert rollout + with_gradient + others == forwards


def test_a_dry_run_of_a_full_size_recipe_prints_an_estimate_without_weights(thalweg):
    told = thalweg("train", "flux1-dev/mix-grpo", "rewards=[pickscore]", "--dry-run")
    assert told.code == 0, told.err
    assert "# an estimate from a formula" in told.out and "# 80 GB (H100): fits;" in told.out


def test_a_resolved_recipe_is_a_recipe(train, thalweg, tiny_world, tmp_path):
    told = train("mix-grpo", "--dry-run")
    (tmp_path / "mine.yaml").write_text(told.out)
    again = thalweg("train", tmp_path / "mine.yaml", "--dry-run")
    assert again.out == told.out


def test_resuming_goes_on_where_it_is_told(run, thalweg):
    outcome = thalweg("resume", run, "iterations=3")
    assert outcome.code == 0
    assert outcome.out == f"{run}: finished; report: {run}/report.html\n"
    assert iterations_saved(run)[-1] == 3


def test_a_stopped_run_says_how_to_go_on(train, tmp_path):
    outcome = train("flow-grpo", "iterations=9", "run.max_seconds=0.001", "--out", tmp_path / "run")
    assert outcome.code == 0
    assert f"stopped at iteration 1; `thalweg resume {tmp_path}/run`" in outcome.out


def test_sampling_writes_the_images_it_names(run, thalweg, tmp_path):
    arguments = ["a red square", "a blue circle", "--count", 3, "--scale", 4, "--out", tmp_path / "images"]
    outcome = thalweg("sample", run, *arguments)
    assert outcome.code == 0
    assert outcome.out.split() == [f"{tmp_path}/images/{n:04d}.png" for n in range(6)]
    with Image.open(tmp_path / "images" / "0005.png") as image:
        assert image.size == (64, 64)  # 16 pixels, each four times as wide


def test_samples_of_a_seed_are_the_same_and_training_changes_them(train, thalweg, tmp_path):
    assert train("flow-grpo", "optim.learning_rate=0.01", "--out", tmp_path / "run").code == 0

    def images(source, seed):
        return library.sample(source, ["a red square"], per_prompt=2, seed=seed)

    base, trained = images("flow-grpo", 0), images(tmp_path / "run", 0)
    assert (images("flow-grpo", 0) == base).all()
    assert (images("flow-grpo", 1) != base).any()
    assert (trained != base).any()


def test_measuring_prints_the_same_numbers_as_text_and_as_json(run, thalweg):
    values = json.loads(thalweg("eval", run, "--json").out)
    last = metrics_of(run)[-1]
    assert values["reward"] == pytest.approx(last["reward"], abs=1e-6)
    assert values.keys() >= {
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "accuracy/single",
        "reward/brightness",
    }
    text = dict(line.split() for line in thalweg("eval", run).out.splitlines())
    assert text == {name: f"{value:.4f}" for name, value in values.items()}


def test_a_report_is_written_again_and_several_runs_are_compared(run, train, thalweg, tmp_path):
    (run / "report.html").unlink()
    assert thalweg("report", run).out == f"{run / 'report.html'}\n"
    assert (run / "report.html").exists()
    assert train("diffusion-nft", "--out", tmp_path / "other").code == 0
    both = thalweg("report", run, tmp_path / "other", "--out", tmp_path / "both.html")
    assert both.code == 0
    page = (tmp_path / "both.html").read_text()
    assert "flow-grpo" in page and "diffusion-nft" in page


def test_doctor_finds_nothing_wrong_with_an_installation_and_a_sound_recipe(thalweg):
    arguments = ["data.prompts_per_iteration=2", "rollout.group_size=4", "rewards=[brightness]", "--json"]
    outcome = thalweg("doctor", "flow-grpo", *arguments)
    rows = {row["what"]: row for row in json.loads(outcome.out)}
    assert outcome.code == 0, rows
    assert rows["rollout passes"]["value"] == "64, planned 64"
    assert rows["group completeness"]["value"] == "2 groups of 4 to 4"
    assert rows["groups without variance"]["value"] == "0 of 2"
    assert rows["parameters without gradient"]["value"].startswith("0 of ")
    assert rows["ratio deviation"]["ok"] and rows["noise floor between batch shapes"]["ok"]


def test_doctor_exits_with_one_where_half_of_the_groups_teach_nothing(
    thalweg, tiny_world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat.py").write_text("def judge(images, prompts):\n    return [1.0] * len(images)\n")
    arguments = ["data.prompts_per_iteration=2", "rollout.group_size=4", "rewards=['flat:judge']", "--json"]
    try:
        outcome = thalweg("doctor", "flow-grpo", *arguments)
    finally:
        sys.modules.pop("flat", None)
    assert outcome.code == 1
    row = next(r for r in json.loads(outcome.out) if r["what"] == "groups without variance")
    assert (row["value"], row["ok"]) == ("2 of 2", False)
    assert "make groups larger or prompts harder" in row["advice"]


def test_doctor_without_a_recipe_looks_at_the_installation(thalweg):
    outcome = thalweg("doctor")
    assert outcome.code == 0
    assert "torch" in outcome.out and "weights of scenes" in outcome.out


def test_the_schema_knows_every_key_that_everybody_types(thalweg):
    schema = json.loads(thalweg("schema").out)
    assert schema == json.loads(json.dumps(Recipe.model_json_schema()))
    assert {"iterations", "seed", "rollout", "optim", "objective", "data"} <= schema["properties"].keys()
    parts = schema["$defs"]
    assert {"group_size", "steps"} <= parts["Rollout"]["properties"].keys()
    assert "noise_level" in parts["FlowSDE"]["properties"]
    assert "clip_range" in parts["ClippedRatio"]["properties"]
    assert all(
        part.get("additionalProperties") is False for part in parts.values() if part["type"] == "object"
    )


def test_a_reward_of_the_user_trains_by_its_import_path(train, thalweg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taste.py").write_text(
        "def redness(images, prompts):\n"
        "    assert len(images) == len(prompts) and prompts[0].text\n"
        "    return (images[:, 0] - images[:, 2]).flatten(1).mean(1)\n"
    )
    try:
        outcome = train("diffusion-nft", "rewards=['taste:redness']", "--out", "run")
        assert outcome.code == 0, outcome.err
        assert all("reward/redness" in line for line in metrics_of(tmp_path / "run"))
        assert thalweg("resume", "run", "iterations=3").code == 0
    finally:
        sys.modules.pop("taste", None)
    assert len(trains(tmp_path / "run")) == 3


def darkness(images, prompts):
    return 1 - images.flatten(1).mean(1)


def test_a_reward_of_the_user_trains_as_a_python_function(tiny_world, tmp_path):
    overrides = {
        "rewards": [darkness, "brightness"],
        "rollout.group_size": 4,
        "data.prompts_per_iteration": 2,
    }
    small_evaluation = {"evaluation.num_prompts": 6, "evaluation.diversity_prompts": 0, "iterations": 1}
    recipe = library.load_recipe("flow-grpo", overrides | small_evaluation)
    run = library.train(recipe, out=tmp_path / "run")
    (line,) = trains(run.path)
    assert line["reward/darkness"] == pytest.approx(1 - line["reward/brightness"], abs=1e-6)
    assert line["reward"] == pytest.approx(1, abs=1e-6)  # their sum is the same for every image
    assert line["zero_variance_fraction"] <= 1


def test_recipes_of_python_functions_train_like_those_of_their_kinds(tiny_world, tmp_path):
    def brightness(images, prompts):
        return images.flatten(1).mean(1)

    a = library.train(small("flow-grpo", {"rewards": [brightness]}), out=tmp_path / "a")
    b = library.train(small("flow-grpo", {"rewards": ["brightness"]}), out=tmp_path / "b")
    assert trains(a.path) == trains(b.path)


def test_an_interrupted_command_exits_with_130(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text("def judge(images, prompts):\n    raise KeyboardInterrupt\n")
    try:
        assert train("flow-grpo", "rewards=['slow:judge']", "--out", "run").code == 130
    finally:
        sys.modules.pop("slow", None)
