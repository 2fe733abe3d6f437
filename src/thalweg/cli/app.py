"""Commands. Errors a user can cause go to stderr, a line each, with exit code 2."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from thalweg.core.errors import UserError
from thalweg.core.names import nearest

app = typer.Typer(
    name="thalweg",
    help="Align generative flow and diffusion models by online reinforcement learning.",
    epilog="Start with: thalweg train diffusion-nft",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

RecipeName = Annotated[str, typer.Argument(help="A recipe's name (`thalweg methods`) or a YAML file.")]
RunPath = Annotated[Path, typer.Argument(help="The folder of a run.")]
Source = Annotated[str, typer.Argument(help="The folder of a run, or a recipe for its untrained model.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, key=value: `rollout.steps=8 'rewards=[scenes]'`."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command(epilog="Example: thalweg train mix-grpo iterations=40 seed=1 --out runs/first")
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/RECIPE-TIME without it.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what it will cost, and stop.")
    ] = False,
) -> None:
    """Train a model by a recipe, and write a report."""
    from thalweg.cli.progress import show
    from thalweg.training.loop import train as run_training
    from thalweg.training.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        from thalweg.cli.tables import print_plan

        print_plan(loaded)
        return
    with show(loaded) as progress:
        run = run_training(loaded, out, progress)
    _say_where(run)


@app.command(epilog="Example: thalweg resume runs/first iterations=200")
def resume(run: RunPath, overrides: Overrides = None) -> None:
    """Continue a run from its last checkpoint; overrides may extend it."""
    from thalweg.cli.progress import show
    from thalweg.training.folder.saved import load_run
    from thalweg.training.loop import resume as continue_run

    loaded = load_run(run, overrides or []).recipe
    with show(loaded) as progress:
        done = continue_run(run, loaded, progress)
    _say_where(done)


@app.command(epilog="Example: thalweg sample runs/first 'a red square left of a blue circle' --count 4")
def sample(
    source: Source,
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    count: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the initial noises.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("samples"),
    scale: Annotated[int, typer.Option(min=1, help="Enlarge pixels this many times.")] = 1,
) -> None:
    """Draw images with a trained or an untrained model."""
    from thalweg.cli.images import save_images
    from thalweg.training.folder.saved import sample as draw

    images = draw(source, prompts, count, seed)
    for path in save_images(images, out, scale):
        typer.echo(path)


@app.command(epilog="Example: thalweg export runs/first --out adapter --layout comfyui")
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="New folder for the files.")] = Path("adapter"),
    layout: Annotated[
        str, typer.Option(help="Names of the adapter's layers: diffusers or comfyui.")
    ] = "diffusers",
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the whole pipeline with the adapters in its weights.")
    ] = False,
) -> None:
    """Write a run's model as diffusers or ComfyUI reads it, with a model card; checked by reading it back."""
    from thalweg.training.folder.export import export as run_export

    exported = run_export(run, out, layout, merged)
    for path in exported.paths:
        typer.echo(path)
    typer.echo(f"read back into a fresh pipeline: differs by {exported.difference:.2g}", err=True)


@app.command("eval", epilog="Example: thalweg eval runs/first evaluation.samples_per_prompt=4 --json")
def evaluate(source: Source, overrides: Overrides = None, as_json: AsJSON = False) -> None:
    """Measure a model on held-out prompts."""
    from thalweg.core.processes import Processes
    from thalweg.evaluation import measure
    from thalweg.models import POLICY
    from thalweg.training.data.prompts import held_out_prompts
    from thalweg.training.folder.saved import open_model
    from thalweg.worlds import find_world

    policy, recipe = open_model(source, overrides or [])
    settings = recipe.evaluation.model_copy(update={"weights": POLICY})
    held_out = held_out_prompts(recipe.data, settings, recipe.model.world)
    prompts = measure.spread(held_out, settings.num_prompts)
    world = None if recipe.model.world is None else find_world(recipe.model.world)
    _print_values(measure.measure(policy, prompts, recipe.rewards, world, settings, Processes()), as_json)


@app.command(epilog="Example: thalweg report runs/flow-grpo runs/diffusion-nft --out comparison.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are compared.")],
    out: Annotated[Path, typer.Option(help="File for a comparison.")] = Path("comparison.html"),
) -> None:
    """Write the report of a run, or compare several."""
    from thalweg.evaluation.comparison import write_comparison
    from thalweg.evaluation.report import write_report
    from thalweg.training.folder.saved import load_run

    for run in runs:
        load_run(run)
    typer.echo(write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, out))


@app.command(epilog="Example: thalweg bench flow-grpo diffusion-nft --cpu-seconds 240 --out bench")
def bench(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Recipes, and key=value changes to all of them.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Recipes that are compared: main, trajectory, forward.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    cpu_seconds: Annotated[float, typer.Option(min=1, help="Processor time of each run.")] = 240,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")] = Path("bench"),
    trials: Annotated[
        int, typer.Option(min=1, max=5, help="Learning rates tried for each recipe, a quarter of a run each.")
    ] = 1,
) -> None:
    """Train recipes under one budget and write a table; goes on where it was interrupted."""
    from thalweg.training.bench import SUITES, stored_curve
    from thalweg.training.bench import bench as run_bench
    from thalweg.training.compare import table

    names = [text for text in recipes or () if "=" not in text]
    changes = [text for text in recipes or () if "=" in text]
    if suite is not None and suite not in SUITES:
        raise UserError(f"--suite {suite}: no such suite{nearest(suite, SUITES)}")
    names += [name for name in SUITES.get(suite or "", ()) if name not in names]
    if not names:
        raise UserError(f"bench: name recipes, or a suite with --suite ({', '.join(SUITES)})")
    if not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise UserError(f"--seeds {seeds}: whole numbers with commas, such as 0,1,2")
    numbers = [int(seed) for seed in seeds.split(",")]
    results = run_bench(
        names, numbers, cpu_seconds, out, changes, trials, lambda line: typer.echo(line, err=True)
    )
    typer.echo(table(results, stored_curve(out)))


@app.command()
def methods(as_json: AsJSON = False) -> None:
    """List the recipes that ship with the library."""
    from thalweg.cli.tables import method_rows, print_table

    print_table("Methods", method_rows(), as_json)


@app.command()
def models(as_json: AsJSON = False) -> None:
    """List the models that can be trained."""
    from thalweg.cli.tables import model_rows, print_table

    print_table("Models", model_rows(), as_json)


@app.command()
def rewards(as_json: AsJSON = False) -> None:
    """List the rewards that ship with the library."""
    from thalweg.cli.tables import print_table, reward_rows

    print_table("Rewards", reward_rows(), as_json)


@app.command()
def worlds(as_json: AsJSON = False) -> None:
    """List the embedded worlds."""
    from thalweg.cli.tables import print_table, world_rows

    print_table("Worlds", world_rows(), as_json)


@app.command(epilog="Example: thalweg doctor flow-grpo optim.micro_batch=16")
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Also replay a rollout of this recipe; or model=FOLDER, a diffusers pipeline; or "
            "`processes`, those that torchrun started.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJSON = False,
) -> None:
    """Check the installation, and with a recipe whether its numbers can be trusted here."""
    from thalweg.cli.tables import installation_rows, print_table
    from thalweg.core.processes import is_first_process
    from thalweg.training.preflight.doctor import examine, examine_model
    from thalweg.training.recipe.load import load_recipe

    rows = installation_rows()
    if recipe is not None and recipe.startswith("model="):
        from thalweg.training.recipe.load import load_model

        found = examine_model(load_model([recipe, *(overrides or [])]))
    elif recipe == "processes":
        found = _examine_processes(overrides)
    else:
        found = [] if recipe is None else examine(load_recipe(recipe, overrides or []))
    rows += [{"what": f.what, "value": f.value, "ok": f.ok, "advice": f.advice} for f in found]
    if is_first_process():
        print_table("Doctor", rows, as_json)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@app.command(epilog="Example: thalweg calibrate dense-grpo --rounds 10")
def calibrate(
    recipe: RecipeName,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rollouts to look at.")] = 10,
) -> None:
    """Find how much noise each step bears, for a recipe with dense credit; prints the kernel to use."""
    from thalweg.training.preflight.calibrate import calibrate as find_noise
    from thalweg.training.recipe.load import load_recipe

    def say(number: int, tallies: list[Any]) -> None:
        shown = " ".join(f"{t.noise:.2f}:+{t.gaining}-{t.losing}" for t in tallies)
        typer.echo(f"round {number + 1}, noise:+gaining-losing of {tallies[0].count}: {shown}", err=True)

    kernel = find_noise(load_recipe(recipe, overrides or []), rounds, say)
    typer.echo(f"rollout.kernel={json.dumps(kernel.model_dump(mode='json'))}")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for completion in an editor."""
    from thalweg.training.recipe.schema import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))


def main() -> None:
    """Entry point."""
    sys.path.insert(0, "")  # a reward named module:function is looked for where the user stands
    try:
        app(prog_name="thalweg")
    except UserError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from None


def _examine_processes(overrides: list[str] | None) -> list[Any]:
    from thalweg.core.processes import connect, disconnect
    from thalweg.training.distribution.launch import examine_processes

    if overrides:
        raise UserError(f"doctor processes: '{overrides[0]}' changes nothing there; leave it out")
    processes = connect()
    try:
        return examine_processes(processes)
    finally:
        disconnect(processes)


def _say_where(run: Any) -> None:
    from thalweg.core.processes import is_first_process

    if is_first_process():
        state = (
            "finished"
            if run.finished
            else f"stopped at iteration {run.iteration}; `thalweg resume {run.path}`"
        )
        typer.echo(f"{run.path}: {state}; report: {run.path / 'report.html'}")


def _print_values(values: dict[str, float], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(f"{name:24} {value:.4f}")
