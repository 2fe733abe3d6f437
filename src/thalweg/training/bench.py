"""Several recipes, several seeds, one budget of processor time: a table that anyone can make again.

Each finished (recipe, seed) is a row of `results.json`; what is finished is not done again, what was
interrupted goes on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole
from thalweg.training.compare import Result, measure, table
from thalweg.training.folder.checkpoint import read_state
from thalweg.training.folder.saved import SavedRun, load_run
from thalweg.training.loop import resume, train
from thalweg.training.recipe.load import load_recipe
from thalweg.training.recipe.schema import Recipe
from thalweg.training.stop import StopRequest

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
FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25)
"""What trials multiply a recipe's learning rate by, in this order."""
TRIAL_SEED = 1000
"""Of trials: no seed of the comparison."""

Say = Callable[[str], None]


def bench(
    recipes: Sequence[str],
    seeds: Sequence[int],
    cpu_seconds: float,
    out: Path,
    overrides: Sequence[str] = (),
    trials: int = 1,
    say: Say = lambda line: None,
) -> list[Result]:
    """Train what is not finished, one after another, each in a process of its own, and keep `table.md`,
    `results.json` and `curves.jsonl` in `out` up to date after each run.

    What `results.json` holds is finished, with or without its run's folder. With `trials` above 1 each recipe
    first runs that often with other learning rates, each time for a quarter of the budget, on a seed and on
    prompts that the comparison does not use; the best rate is taken.
    """
    rates = {name: _learning_rate(name, cpu_seconds, out, overrides, trials, say) for name in recipes}
    done: list[Result] = []
    for seed in seeds:
        done += [_measured(name, seed, cpu_seconds, out, overrides, rates[name], say) for name in recipes]
    return sorted(done, key=lambda result: [load_recipe(name).name for name in recipes].index(result.recipe))


def _learning_rate(
    name: str, cpu_seconds: float, out: Path, overrides: Sequence[str], trials: int, say: Say
) -> float:
    """The recipe's own, or the best of several."""
    own = load_recipe(name, overrides).optim.learning_rate
    if trials == 1:
        return own
    unseen = [*overrides, "evaluation.prompts=training"]
    tried = [
        _measured(
            name, TRIAL_SEED, cpu_seconds / 4, out / "trials" / f"x{factor:g}", unseen, own * factor, say
        )
        for factor in FACTORS[:trials]
    ]
    return max(tried, key=lambda result: result.final).learning_rate


def _measured(
    name: str, seed: int, cpu_seconds: float, out: Path, overrides: Sequence[str], rate: float, say: Say
) -> Result:
    """The stored result of a recipe and a seed, or the one of a run that is now done, and stored."""
    budget = [f"run.max_cpu_seconds={cpu_seconds}", f"iterations={UNBOUNDED}"]
    recipe = load_recipe(name, [f"seed={seed}", *budget, f"optim.learning_rate={rate!r}", *overrides])
    stored = {(result.recipe, result.seed): result for result in stored_results(out)}
    known = stored.get((recipe.name, seed))
    if known is not None:
        asked = (cpu_seconds, tuple(overrides), recipe.optim.learning_rate)
        if (known.budget, known.changes, known.learning_rate) != asked:
            raise UserError(
                f"{out}: holds a result of {recipe.name}, seed {seed}, under another budget, other keys or "
                "another learning rate; give another folder with --out"
            )
        return known
    folder = out / f"{recipe.name}-{seed}"
    if not _is_finished(folder, cpu_seconds):
        say(f"{folder}: training for {cpu_seconds:g} s of processor time")
        _in_its_own_process(folder, recipe)
    if not _is_finished(folder, cpu_seconds):
        raise UserError(f"{folder}: stopped before its budget was spent; the same command goes on")
    run = load_run(folder)
    result = _result(run, cpu_seconds, overrides)
    _store([*stored.values(), result], _curve(run), out)
    return result


def stored_results(out: Path) -> list[Result]:
    """What finished in a bench's folder."""
    path = out / "results.json"
    if not path.exists():
        return []
    return [Result(**row | {"changes": tuple(row["changes"])}) for row in json.loads(path.read_text("utf-8"))]


def stored_curve(out: Path) -> list[dict[str, Any]]:
    """Every evaluation of what finished in a bench's folder."""
    path = out / "curves.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _store(results: Sequence[Result], curve: list[dict[str, Any]], out: Path) -> None:
    newest = {"recipe": results[-1].recipe, "seed": results[-1].seed}
    lines = [line for line in stored_curve(out) if not newest.items() <= line.items()] + curve
    write_whole(out / "curves.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_whole(out / "table.md", table(results, lines))
    write_whole(out / "results.json", json.dumps([asdict(r) for r in results], indent=1) + "\n")


def _is_finished(folder: Path, cpu_seconds: float) -> bool:
    if not (folder / "recipe.yaml").exists():
        return False
    done = load_run(folder).checkpoints
    return bool(done) and read_state(done[-1]).cpu_seconds >= cpu_seconds


def _in_its_own_process(folder: Path, recipe: Recipe) -> None:
    """Its peak of memory is then its own. Ctrl-C and SIGTERM let it save and stop, also where a signal to the
    whole group ends the server that started it.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["thalweg.training.loop"])
    report, end = context.Pipe(duplex=False)
    process = context.Process(target=_report_of, args=(folder, recipe, end))
    with StopRequest() as stop:
        process.start()
        end.close()
        while not report.poll(1):
            if stop.requested():
                process.terminate()
        try:
            problem = report.recv()
        except EOFError:
            problem = UserError(
                f"{folder}: its process ended without a word, perhaps killed for memory, unless a traceback "
                "stands above; the same command goes on"
            )
        process.join()
    if problem is not None:
        raise problem


def _report_of(folder: Path, recipe: Recipe, end: Connection) -> None:
    """Send what is wrong with what was asked, or None."""
    try:
        _go_on(folder, recipe)
    except UserError as problem:
        end.send(problem)
    else:
        end.send(None)


def _go_on(folder: Path, recipe: Recipe) -> None:
    if not (folder / "recipe.yaml").exists():
        train(recipe, folder)
        return
    stored = load_run(folder).recipe
    same = {"run": recipe.run, "iterations": recipe.iterations}
    if stored.model_copy(update=same) != recipe:
        raise UserError(f"{folder}: holds a run of another recipe; give another folder with --out")
    resume(folder, recipe)


def _result(run: SavedRun, budget: float, changes: Sequence[str]) -> Result:
    lines = run.metrics
    evals = [line for line in lines if line["event"] == "eval"]
    trains = [line for line in lines if line["event"] == "train"]
    judged = measure(evals[0])
    return Result(
        recipe=run.recipe.name,
        claim=run.recipe.claim,
        learning_rate=run.recipe.optim.learning_rate,
        budget=budget,
        changes=tuple(changes),
        seed=run.recipe.seed,
        hardware=json.loads((run.path / "run.json").read_text(encoding="utf-8"))["hardware"]["processor"],
        processes=trains[-1]["processes"],
        iterations=trains[-1]["iteration"],
        base=evals[0][judged],
        final=evals[-1][judged],
        best=max(line[judged] for line in evals),
        reward=evals[-1]["reward"],
        diversity_kept=evals[-1].get("diversity", float("nan")) / evals[0].get("diversity", float("nan")),
        evaluations=trains[-1]["evaluations"],
        backwards=trains[-1]["backwards"],
        cpu_seconds=trains[-1]["time/cpu"],
        seconds=trains[-1]["seconds"],
        peak_mb=trains[-1]["memory/peak_mb"],
    )


def _curve(run: SavedRun) -> list[dict[str, Any]]:
    """Every evaluation of a run, with the processor time spent so far."""
    lines: list[dict[str, Any]] = []
    cpu = 0.0
    for line in run.metrics:
        cpu = line.get("time/cpu", cpu)
        if line["event"] == "eval":
            lines.append({"recipe": run.recipe.name, "seed": run.recipe.seed, "cpu_seconds": cpu} | line)
    return lines
