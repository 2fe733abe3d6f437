import json

import pytest

from thalweg.core.errors import UserError
from thalweg.training.bench import Result, bench, table

SMALL = [
    "rollout.group_size=4",
    "rollout.steps=3",
    "data.prompts_per_iteration=2",
    "evaluation.num_prompts=6",
    "evaluation.diversity_prompts=2",
    "evaluation.diversity_group=2",
]


def result(recipe, seed, final):
    return Result(
        recipe, seed, 10, 0.5, final, 0.9, 0.8, 1.0, 100, 40, 60.0, 70.0, 500.0, 1, "a processor", "faster"
    )


def test_a_row_of_the_table_has_the_mean_and_the_sample_deviation_over_seeds():
    rows = table([result("a", 0, 0.6), result("a", 1, 0.8), result("b", 0, 0.7)]).splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| a | 0, 1 | 0.500 ± 0.000 | 0.700 ± 0.141 |")  # sqrt(2 · .1² / 1)
    assert rows[3].startswith("| b | 0 | 0.500 | 0.700 |") and rows[3].endswith("| faster |")


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(tmp_path):
    said: list[str] = []
    first = bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL, said.append)
    assert [line for line in said if "training" in line]
    assert first[0].seed == 3 and first[0].iterations == 1
    curves = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in curves] == [0, 1]

    said.clear()
    assert bench(["diffusion-nft"], [3], 0.01, tmp_path, SMALL, said.append) == first
    assert not [line for line in said if "training" in line]

    with pytest.raises(UserError, match="another recipe"):
        bench(["diffusion-nft"], [3], 1e6, tmp_path, [*SMALL, "optim.learning_rate=1"])
