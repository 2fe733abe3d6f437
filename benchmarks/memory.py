"""Does memory grow with the number of denoising steps? One iteration each, in a process of its own.

    python benchmarks/memory.py [--recipes mix-grpo,diffusion-nft,flow-grpo] [--steps 8,16,32,64]

Prints the peak of the process and the bytes of stored states that the batch plan names. A method that trains
a window, or finished samples, stores as much at 64 steps as at 8; one that trains all steps stores all of
them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from thalweg.training.recipe.load import load_recipe

ONE_ITERATION = ["iterations=1", "evaluation.num_prompts=6", "evaluation.diversity_prompts=0"]


def peak_megabytes(recipe: str, overrides: list[str]) -> float:
    """Of one iteration in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "thalweg", "train", recipe, *overrides, "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return next(line["memory/peak_mb"] for line in lines if line["event"] == "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipes", default="mix-grpo,diffusion-nft,flow-grpo")
    parser.add_argument("--steps", default="8,16,32,64")
    options = parser.parse_args()
    print("| recipe | steps | peak MB | stored MB |\n|---|---|---|---|")
    for name in options.recipes.split(","):
        for steps in options.steps.split(","):
            overrides = [*ONE_ITERATION, f"rollout.steps={steps}"]
            recipe = load_recipe(name, overrides)
            stored = batch_plan(recipe, load_policy(recipe)).stored_bytes / 2**20
            peak = peak_megabytes(name, overrides)
            print(f"| {name} | {steps} | {peak:.0f} | {stored:.1f} |", flush=True)


if __name__ == "__main__":
    main()
