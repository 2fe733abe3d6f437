import json
import shutil

import pytest

from thalweg.core.errors import UserError
from thalweg.training.bench import TRIAL_SEED, Result, bench, stored_results, table
from thalweg.training.recipe import load_recipe

SMALL = [
    "rollout.group_size=4",
    "rollout.steps=3",
    "data.prompts_per_iteration=2",
    "evaluation.num_prompts=6",
    "evaluation.diversity_prompts=2",
    "evaluation.diversity_group=2",
]


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
