"""Does training in bfloat16 learn what training in float32 learns? A tiny SD3, the same recipe and seeds in
both.

    python benchmarks/bf16.py [--iterations 200] [--seeds 0,1,2] [--out docs/results/bf16]

Writes the reward of every iteration (curves.jsonl), the picture of the first seed (reward.svg), and what
follows from them (table.md): for each seed the rise of the reward, the mean of the last tenth less that of
the first, in both precisions, and the largest distance of the two curves averaged over a tenth of the run, in
units of the rise in float32. Beside it stands that distance between the seeds of float32.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
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
    "optim.learning_rate": 5e-3,  # at 2e-2 the noise of 16 samples decides when the reward rises
    "optim.micro_batch": 64,
    "evaluation.every": 0,
    "evaluation.num_prompts": 2,
    "evaluation.diversity_prompts": 0,
    "evaluation.steps": 2,
    "run.save_every": 100000,
}


def rewards_of(precision: str, seed: int, iterations: int, work: Path) -> list[float]:
    """The reward of every iteration."""
    prompts = work / "prompts.txt"
    prompts.write_text("a red square\ntwo blue circles\na green line\na small dog\n")
    settings = tiny.saved("sd3", work) | SETTINGS | {"model.precision": precision, "iterations": iterations}
    settings |= {"data.prompts": str(prompts), "evaluation.prompts": str(prompts), "seed": seed}
    run = train(load_recipe(find_recipe("flow-grpo"), settings), work / f"{precision}-{seed}")
    return [m["reward"] for m in read_metrics(run.path / "metrics.jsonl") if m["event"] == "train"]


def rise(curve: Sequence[float]) -> float:
    """Of the reward: the mean of the last tenth less that of the first."""
    return smooth(curve)[-1] - smooth(curve)[0]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest distance of two curves averaged over a tenth of the run."""
    return max(abs(a - b) for a, b in zip(smooth(one), smooth(other), strict=True))


def smooth(curve: Sequence[float]) -> list[float]:
    """Means over a tenth of the run."""
    tenth = max(1, len(curve) // 10)
    return [sum(curve[i : i + tenth]) / tenth for i in range(len(curve) - tenth + 1)]


def write(out: Path, curves: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """Everything into the folder; curves by precision and seed."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"precision": name, "seed": seed, "rewards": curve})
        for name in PRECISIONS
        for seed, curve in curves[name].items()
    ]
    (out / "curves.jsonl").write_text("\n".join(lines) + "\n")
    whole, half = (curves[name] for name in PRECISIONS)
    first = next(iter(whole))
    picture = {name: list(enumerate(curves[name][first], 1)) for name in PRECISIONS}
    (out / "reward.svg").write_text(curve_picture(picture))
    table = [
        f"Tiny SD3, `flow-grpo`, reward `brightness`, {len(whole[first])} iterations, CPU.",
        "",
        "| seed | rise in float32 | rise in bfloat16 | largest distance of smoothed curves |",
        "|---|---|---|---|",
        *(
            f"| {seed} | {rise(whole[seed]):.4f} | {rise(half[seed]):.4f} | "
            f"{apart(whole[seed], half[seed]) / abs(rise(whole[seed])):.1%} of the rise in float32 |"
            for seed in whole
        ),
    ]
    if len(whole) > 1:
        between = max(apart(a, b) for a, b in combinations(whole.values(), 2)) / abs(rise(whole[first]))
        table += ["", f"Largest distance between seeds in float32: {between:.1%} of the first one's rise."]
    (out / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bf16"))
    options = parser.parse_args()
    asked = [(name, int(seed)) for seed in options.seeds.split(",") for name in PRECISIONS]
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        tiny.saved("sd3", Path(work))
        waiting = {key: pool.submit(rewards_of, *key, options.iterations, Path(work)) for key in asked}
        found = {key: future.result() for key, future in waiting.items()}
    write(options.out, {name: {s: c for (p, s), c in found.items() if p == name} for name in PRECISIONS})
