"""Does training in bfloat16 learn what training in float32 learns? A tiny SD3, the same recipe and seed in
both.

    python benchmarks/bf16.py [--iterations 200] [--out docs/results/bf16]

Writes the reward of every iteration (curves.jsonl), the picture (reward.svg), and what follows from them
(table.md): the rise of the reward, the mean of the last tenth less that of the first, in both precisions,
and the largest distance of the two curves averaged over a tenth of the run, in units of the rise in float32.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import tiny

from thalweg.training.folder.export import curve_picture
from thalweg.training.folder.run import read_metrics
from thalweg.training.loop import train
from thalweg.training.recipe.load import find_recipe, load_recipe

PRECISIONS = ("float32", "bfloat16")
SETTINGS = {
    "rewards": ["brightness"],
    "model.guidance_scale": 1.0,
    "data.prompts_per_iteration": 2,
    "rollout.group_size": 8,
    "rollout.steps": 3,
    "rollout.micro_batch": 64,
    "optim.learning_rate": 2e-2,
    "optim.micro_batch": 64,
    "evaluation.every": 0,
    "evaluation.num_prompts": 2,
    "evaluation.diversity_prompts": 0,
    "evaluation.steps": 2,
    "run.save_every": 100000,
}


def rewards_of(precision: str, iterations: int, work: Path) -> tuple[list[float], float]:
    """The reward of every iteration, and the seconds of all."""
    start = time.perf_counter()
    prompts = work / "prompts.txt"
    prompts.write_text("a red square\ntwo blue circles\na green line\na small dog\n")
    settings = tiny.saved("sd3", work) | SETTINGS | {"model.precision": precision, "iterations": iterations}
    settings |= {"data.prompts": str(prompts), "evaluation.prompts": str(prompts)}
    run = train(load_recipe(find_recipe("flow-grpo"), settings), work / precision)
    lines = read_metrics(run.path / "metrics.jsonl")
    return [m["reward"] for m in lines if m["event"] == "train"], time.perf_counter() - start


def compare(curves: dict[str, list[float]]) -> dict[str, float]:
    """The numbers of the table."""
    tenth = max(1, len(curves["float32"]) // 10)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    rises = {name: mean(c[-tenth:]) - mean(c[:tenth]) for name, c in curves.items()}
    smooth = {name: [mean(c[i : i + tenth]) for i in range(len(c) - tenth + 1)] for name, c in curves.items()}
    apart = max(abs(a - b) for a, b in zip(*(smooth[name] for name in PRECISIONS), strict=True))
    return {
        "rise_float32": rises["float32"],
        "rise_bfloat16": rises["bfloat16"],
        "largest_distance_in_rises": apart / abs(rises["float32"]),
    }


def write(out: Path, curves: dict[str, list[float]], seconds: dict[str, float]) -> None:
    """Everything into the folder."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"precision": name, "rewards": curves[name]}) for name in PRECISIONS]
    (out / "curves.jsonl").write_text("\n".join(lines) + "\n")
    (out / "reward.svg").write_text(curve_picture({n: list(enumerate(curves[n], 1)) for n in PRECISIONS}))
    found = compare(curves)
    table = [
        f"Tiny SD3, `flow-grpo`, reward `brightness`, {len(curves['float32'])} iterations, one seed, CPU.",
        "",
        "| precision | rise of the reward | seconds |",
        "|---|---|---|",
        *(f"| {n} | {found[f'rise_{n}']:.4f} | {seconds[n]:.0f} |" for n in PRECISIONS),
        "",
        f"Largest distance of smoothed curves: {found['largest_distance_in_rises']:.1%} of float32's rise.",
    ]
    (out / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bf16"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        tiny.saved("sd3", Path(work))
        waiting = [pool.submit(rewards_of, name, options.iterations, Path(work)) for name in PRECISIONS]
        found = {name: future.result() for name, future in zip(PRECISIONS, waiting, strict=True)}
    curves = {name: curve for name, (curve, _) in found.items()}
    seconds = {name: taken for name, (_, taken) in found.items()}
    write(options.out, curves, seconds)
