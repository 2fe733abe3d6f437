"""Several recipes, several seeds, one budget of processor time: a table that anyone can make again.

Each finished (recipe, seed) is a run's folder; what is finished is not done again, what was
interrupted goes on.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole
from thalweg.training.checkpoint import read_state
from thalweg.training.loop import resume, train
from thalweg.training.recipe import load_recipe
from thalweg.training.saved import SavedRun, load_run
from thalweg.training.schema import Recipe

SUITES: Mapping[str, tuple[str, ...]] = {
    "main": ("flow-grpo", "dance-grpo", "mix-grpo", "tempflow-grpo", "gcpo", "diffusion-nft"),
    "trajectory": (
        "flow-grpo",
        "flow-grpo-fast",
        "dance-grpo",
        "mix-grpo",
        "mix-grpo-flash",
        "tempflow-grpo",
        "grpo-guard",
        "flow-cps",
        "precise",
        "gcpo",
        "flash-grpo",
        "op-grpo",
        "tree-grpo",
        "branch-grpo",
        "dynamic-tree-rpo",
        "e2po",
        "euphonium",
        "dense-grpo",
        "step-grpo",
        "otca",
        "sol-rl",
        "flow-dppo",
        "rollout-correction",
    ),
    "forward": (
        "diffusion-nft",
        "awm",
        "advantage-flow",
        "v-grpo",
        "elbo-epg",
        "elbo-pepg",
        "elbo-par",
        "ram",
        "crd",
        "dgpo",
        "online-dpo",
        "diffusion-dpo",
        "diffusion-apo",
        "diffusion-apo-half-online",
        "realalign",
        "creflow",
        "omninft",
        "tmpo",
        "rsm-zeroth-order",
        "refl",
        "draft",
        "draft-lv",
        "align-prop",
        "leap-align",
        "srpo",
        "adjoint-matching",
        "adjoint-matching-ode",
        "rsm-first-order",
        "flow-opd",
        "dmd",
        "dp-dmd",
        "gdmd",
        "rats",
        "flow-grpo",
    ),
}
"""Recipes that are compared with each other."""
UNBOUNDED = 1_000_000
"""Iterations that no budget reaches."""


@dataclass(frozen=True)
class Result:
    """What one (recipe, seed) came to."""

    recipe: str
    seed: int
    iterations: int
    base: float
    """Held-out accuracy before training; the held-out reward where there is no accuracy."""
    final: float
    best: float
    reward: float
    diversity_kept: float
    """Final diversity over that of the base model."""
    evaluations: int
    backwards: int
    cpu_seconds: float
    """Of the first process."""
    seconds: float
    peak_mb: float
    processes: int
    hardware: str
    claim: str


def bench(
    recipes: Sequence[str],
    seeds: Sequence[int],
    cpu_seconds: float,
    out: Path,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Train what is not finished, one after another on this process, and write `table.md`, `results.json` and
    `curves.jsonl` to `out`."""
    folders = []
    for name in recipes:
        for seed in seeds:
            folder = out / f"{Path(name).stem}-{seed}"
            budget = [f"seed={seed}", f"run.max_cpu_seconds={cpu_seconds}", f"iterations={UNBOUNDED}"]
            recipe = load_recipe(name, [*budget, *overrides])
            if not _is_finished(folder, cpu_seconds):
                say(f"{folder.name}: training for {cpu_seconds:g} s of processor time")
                _go_on(folder, recipe)
            folders.append(folder)
    return collect(folders, out)


def collect(folders: Sequence[Path], out: Path) -> list[Result]:
    """What finished runs came to, as `table.md`, `results.json` and `curves.jsonl` in `out`."""
    runs = [load_run(folder) for folder in folders]
    results = [_result(run) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "results.json", json.dumps([asdict(r) for r in results], indent=1) + "\n")
    write_whole(out / "table.md", table(results))
    write_whole(out / "curves.jsonl", "".join(line for run in runs for line in _curve(run)))
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown: a row a recipe, mean and sample standard deviation over seeds."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("base", "base", lambda v: f"{v:.3f}"),
        ("final", "final", lambda v: f"{v:.3f}"),
        ("best", "best", lambda v: f"{v:.3f}"),
        ("held-out reward", "reward", lambda v: f"{v:.3f}"),
        ("diversity kept", "diversity_kept", lambda v: f"{v:.2f}"),
        ("iterations", "iterations", lambda v: f"{v:.0f}"),
        ("passes", "evaluations", lambda v: f"{v:.0f}"),
        ("with gradient", "backwards", lambda v: f"{v:.0f}"),
        ("CPU s", "cpu_seconds", lambda v: f"{v:.0f}"),
        ("peak MB", "peak_mb", lambda v: f"{v:.0f}"),
    ]
    lines = [
        "| recipe | seeds | " + " | ".join(title for title, _, _ in columns) + " | published claim |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name in dict.fromkeys(r.recipe for r in results):
        rows = [asdict(r) for r in results if r.recipe == name]
        cells = []
        for _, key, shown in columns:
            values = [float(row[key]) for row in rows]
            spread = f" ± {shown(statistics.stdev(values))}" if len(values) > 1 else ""
            cells.append(shown(statistics.mean(values)) + spread)
        seeds = ", ".join(str(row["seed"]) for row in rows)
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + f" | {rows[0]['claim']} |")
    return "\n".join(lines) + "\n"


def _is_finished(folder: Path, cpu_seconds: float) -> bool:
    if not (folder / "recipe.yaml").exists():
        return False
    done = load_run(folder).checkpoints
    return bool(done) and read_state(done[-1]).cpu_seconds >= cpu_seconds


def _go_on(folder: Path, recipe: Recipe) -> None:
    if not (folder / "recipe.yaml").exists():
        train(recipe, folder)
        return
    stored = load_run(folder).recipe
    same = {"run": recipe.run, "iterations": recipe.iterations}
    if stored.model_copy(update=same) != recipe:
        raise UserError(f"{folder}: holds a run of another recipe; give another folder with --out")
    resume(folder, recipe)


def _result(run: SavedRun) -> Result:
    lines = run.metrics
    evals = [line for line in lines if line["event"] == "eval"]
    trains = [line for line in lines if line["event"] == "train"]
    measure = "accuracy" if "accuracy" in evals[0] else "reward"
    return Result(
        recipe=run.recipe.name,
        claim=run.recipe.claim,
        seed=run.recipe.seed,
        hardware=json.loads((run.path / "run.json").read_text(encoding="utf-8"))["hardware"]["processor"],
        processes=trains[-1]["processes"],
        iterations=trains[-1]["iteration"],
        base=evals[0][measure],
        final=evals[-1][measure],
        best=max(line[measure] for line in evals),
        reward=evals[-1]["reward"],
        diversity_kept=evals[-1].get("diversity", float("nan")) / evals[0].get("diversity", float("nan")),
        evaluations=trains[-1]["evaluations"],
        backwards=trains[-1]["backwards"],
        cpu_seconds=trains[-1]["time/cpu"],
        seconds=trains[-1]["seconds"],
        peak_mb=trains[-1]["memory/peak_mb"],
    )


def _curve(run: SavedRun) -> list[str]:
    """Every evaluation of a run, with the processor time spent so far."""
    lines: list[str] = []
    cpu = 0.0
    for line in run.metrics:
        cpu = line.get("time/cpu", cpu)
        if line["event"] == "eval":
            who: dict[str, Any] = {"recipe": run.recipe.name, "seed": run.recipe.seed, "cpu_seconds": cpu}
            lines.append(json.dumps(who | line) + "\n")
    return lines
