import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from thalweg.core.errors import UserError
from thalweg.training.bench import TRIAL_SEED, bench, stored_results
from thalweg.training.compare import BASELINE, Result, cost_to, table
from thalweg.training.folder.checkpoint import read_state
from thalweg.training.folder.saved import load_run
from thalweg.training.recipe.load import load_recipe

SMALL = [
    "rollout.group_size=4",
    "rollout.steps=3",
    "data.prompts_per_iteration=2",
    "evaluation.num_prompts=6",
    "evaluation.diversity_prompts=2",
    "evaluation.diversity_group=2",
]


def wait_for_training(folder):
    lines = folder / "metrics.jsonl"
    while not (lines.exists() and '"train"' in lines.read_text()):
        time.sleep(0.1)


def result(recipe, seed, final):
    work = {"iterations": 10, "evaluations": 100, "backwards": 40, "processes": 1, "hardware": "a processor"}
    cost = {"cpu_seconds": 60.0, "seconds": 70.0, "peak_mb": 500.0, "budget": 60.0, "changes": ()}
    scores = {"base": 0.5, "best": 0.9, "reward": 0.8, "diversity_kept": 1.0, "learning_rate": 1e-4}
    return Result(recipe=recipe, seed=seed, final=final, claim="faster", **work, **cost, **scores)


def test_a_row_of_the_table_has_the_mean_and_the_sample_deviation_over_seeds():
    rows = table([result("a", 0, 0.6), result("a", 1, 0.8), result("b", 0, 0.7)]).splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| a | 0, 1 | 0.0001 | 0.500 | 0.700 ± 0.141 |")  # sqrt(2 · .1² / 1)
    assert rows[3].startswith("| b | 0 | 0.0001 | 0.500 | 0.700 |") and rows[3].endswith("| faster |")


def curve(recipe, seed, points):
    spent = ({"cpu_seconds": cpu, "evaluations": 10 * cpu, "accuracy": score} for cpu, score in points)
    return [{"recipe": recipe, "seed": seed} | each for each in spent]


def test_cost_is_read_where_the_mean_of_the_seeds_first_reaches_the_level():
    # Seeds rise from .5 to .7 and to .9 in 100 s: their mean passes .6 after 100 · .1 / .3 s.
    both = curve("a", 0, [(0, 0.5), (100, 0.7)]) + curve("a", 1, [(0, 0.5), (50, 0.7), (100, 0.9)])
    assert cost_to(0.6, both, "cpu_seconds") == pytest.approx(100 / 3)
    assert cost_to(0.6, both, "evaluations") == pytest.approx(1000 / 3)
    assert cost_to(0.5, both, "cpu_seconds") == 0
    assert cost_to(0.81, both, "cpu_seconds") is None
    # The last score of a run that is over stands: the mean ends at (.7 + .9) / 2, where the longer one does.
    uneven = curve("a", 0, [(0, 0.5), (80, 0.7)]) + curve("a", 1, [(0, 0.5), (100, 0.9)])
    assert cost_to(0.8, uneven, "cpu_seconds") == pytest.approx(100)


def test_the_table_states_the_cost_of_the_baselines_final_score():
    results = [result(BASELINE, 0, 0.7), result("fast", 0, 0.9), result("slow", 0, 0.6)]
    runs = [(BASELINE, 0.7), ("fast", 0.9), ("slow", 0.6)]
    rows = table(results, [line for name, end in runs for line in curve(name, 0, [(0, 0.5), (80, end)])])
    assert "CPU s to 0.700 | passes to 0.700 |" in rows
    assert "| 80 (1.0x) | 800 (1.0x) |" in rows and "| 40 (2.0x) | 400 (2.0x) |" in rows
    assert "| not reached | not reached |" in rows


def test_processor_time_is_held_against_the_baselines_on_the_same_hardware_alone():
    other = [dataclasses.replace(result("fast", seed, 0.9), hardware="z" * seed + "other") for seed in (0, 1)]
    runs = [(BASELINE, 0, 0.7), ("fast", 0, 0.9), ("fast", 1, 0.9)]
    lines = [line for name, seed, end in runs for line in curve(name, seed, [(0, 0.5), (80, end)])]
    rows = table([result(BASELINE, 0, 0.7), *other], lines)
    assert "| a processor | 80 (1.0x) | 800 (1.0x) |" in rows
    assert "| other, zother | 40 | 400 (2.0x) |" in rows


def test_a_recipe_with_another_base_is_not_held_against_the_baseline():
    other = dataclasses.replace(result("other", 0, 0.9), base=0.1)
    curves = curve(BASELINE, 0, [(0, 0.5), (80, 0.7)]) + curve("other", 0, [(0, 0.1), (80, 0.9)])
    assert "| another task | another task |" in table([result(BASELINE, 0, 0.7), other], curves)


def test_a_run_that_was_stopped_is_no_result_and_goes_on(tmp_path):
    def stop_when_it_trains():
        wait_for_training(tmp_path / "diffusion-nft-3")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_trains, daemon=True).start()
    with pytest.raises(UserError, match="the same command goes on"):
        bench(["diffusion-nft"], [3], 1e6, tmp_path, SMALL)
    assert stored_results(tmp_path) == []
    spent = read_state(load_run(tmp_path / "diffusion-nft-3").checkpoints[-1]).cpu_seconds
    (result,) = bench(["diffusion-nft"], [3], spent + 0.01, tmp_path, SMALL)
    assert result.cpu_seconds > spent


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_the_run_and_leaves_no_process(tmp_path):
    command = [
        sys.executable,
        "-m",
        "thalweg",
        "bench",
        "diffusion-nft",
        "--cpu-seconds",
        "1e6",
        "--seeds",
        "3",
    ]
    group = subprocess.Popen([*command, "--out", tmp_path, *SMALL], start_new_session=True)
    wait_for_training(tmp_path / "diffusion-nft-3")
    os.killpg(group.pid, signal.SIGTERM)
    assert group.wait(60) != 0
    for _ in range(600):
        try:
            os.killpg(group.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(group.pid, signal.SIGKILL)
        pytest.fail("a process of the group is still there after a minute")
    assert load_run(tmp_path / "diffusion-nft-3").checkpoints


def test_a_run_whose_process_is_killed_is_named(tmp_path):
    def kill_when_it_trains():
        wait_for_training(tmp_path / "diffusion-nft-3")
        (run,) = multiprocessing.active_children()
        run.kill()

    threading.Thread(target=kill_when_it_trains, daemon=True).start()
    with pytest.raises(UserError, match="diffusion-nft-3: its process ended without a word"):
        bench(["diffusion-nft"], [3], 1e6, tmp_path, SMALL)


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(tmp_path):
    said: list[str] = []
    first = bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL, say=said.append)
    assert [line for line in said if "training" in line]
    assert first[0].seed == 3 and first[0].iterations == 1
    curves = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in curves] == [0, 1]

    said.clear()
    assert bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL, say=said.append) == first
    assert not [line for line in said if "training" in line]

    with pytest.raises(UserError, match="under another budget, other keys"):
        bench(["diffusion-nft"], [3], 1e6, tmp_path, SMALL)


def test_a_stored_result_needs_no_folder_of_its_run(tmp_path):
    first = bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL)
    shutil.rmtree(tmp_path / "diffusion-nft-3")
    assert bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL) == first
    assert not (tmp_path / "diffusion-nft-3").exists()


def test_a_folder_with_the_run_of_another_recipe_is_refused(tmp_path):
    bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL)
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match="another recipe"):
        bench(["diffusion-nft"], [3], 1e6, tmp_path, [*SMALL, "optim.learning_rate=1"])


def test_the_best_of_equally_many_learning_rates_is_compared(tmp_path):
    said: list[str] = []
    (result,) = bench(["diffusion-nft"], [3], 0.04, tmp_path, SMALL, trials=3, say=said.append)
    own = load_recipe("diffusion-nft").optim.learning_rate
    tried = {}
    for factor in ("1", "2", "0.5"):
        (trial,) = stored_results(tmp_path / "trials" / f"x{factor}")
        assert trial.learning_rate == own * float(factor) and trial.seed == TRIAL_SEED
        assert trial.budget == 0.01 and "evaluation.prompts=training" in trial.changes
        tried[trial.learning_rate] = trial.final
    assert tried[result.learning_rate] == max(tried.values())
    assert len(said) == 4

    said.clear()
    assert bench(["diffusion-nft"], [3], 0.04, tmp_path, SMALL, trials=3, say=said.append) == [result]
    assert not said
