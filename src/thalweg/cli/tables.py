"""Tables of what there is, and of what a recipe costs."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

UNBROKEN = 10_000
"""Characters in a line of a table that goes to a file or another program."""


def print_table(title: str, rows: list[Row], as_json: bool) -> None:
    """The rows as JSON or as a table, as wide as the terminal; a line a row where there is none."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(rows[0]):
        # Names stay whole, to be copied.
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*("yes" if v is True else "NO" if v is False else str(v) for v in row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=UNBROKEN)).print(table)


def method_rows() -> list[Row]:
    from thalweg.training.recipe.load import find_recipe, full_size_names, recipe_names

    rows = []
    for name in [*recipe_names(), *full_size_names()]:
        recipe = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
        rows.append(
            {
                "recipe": name,
                "model": name.rpartition("/")[0] or "embedded",
                "method": recipe["title"],
                "paper": recipe["paper"],
                "plan": recipe["rollout"]["plan"]["kind"],
                "objective": recipe["objective"]["kind"],
                "status": "not run at full size by us" if "/" in name else "runs as it stands",
            }
        )
    return rows


def model_rows() -> list[Row]:
    from thalweg.worlds import WORLDS

    embedded = [
        {
            "model": "miniature",
            "world": world.name,
            "size": f"{world.weights.stat().st_size / 1e6:.1f} MB" if world.weights.exists() else "missing",
            "what": f"a small flow transformer for {world.summary}",
        }
        for world in WORLDS.values()
    ]
    real = {
        "model": "diffusers",
        "world": "",
        "size": "any",
        "what": "a flow pipeline: model=FOLDER or owner/name",
    }
    return [*embedded, real]


def reward_rows() -> list[Row]:
    from thalweg.rewards import KINDS
    from thalweg.worlds import WORLDS

    exact = {name: (f"exact judge of the world '{name}'", KINDS["world"]) for name in WORLDS}
    kinds = {name: (" ".join((kind.__doc__ or "").split()), kind) for name, kind in KINDS.items()}
    return [
        {"reward": name, "differentiable": kind.differentiable, "per_step": kind.per_step, "what": what}
        for name, (what, kind) in (exact | kinds).items()
    ]


def world_rows() -> list[Row]:
    from thalweg.worlds import WORLDS

    return [
        {
            "world": world.name,
            "what": world.summary,
            "image": "x".join(map(str, world.image_shape)),
            "training prompts": len(world.training_prompts()),
            "held-out prompts": len(world.held_out_prompts()),
        }
        for world in WORLDS.values()
    ]


def installation_rows() -> list[Row]:
    """Versions, the accelerator, and the shipped weights."""
    import torch

    from thalweg.worlds import WORLDS

    rows: list[Row] = [{"what": "python", "value": platform.python_version(), "ok": True, "advice": ""}]
    for package in ("thalweg", "torch", "peft", "pydantic", "safetensors"):
        rows.append({"what": package, "value": metadata.version(package), "ok": True, "advice": ""})
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "none; the embedded worlds need none"
    )
    rows.append({"what": "accelerator", "value": device, "ok": True, "advice": ""})
    rows.append({"what": "threads", "value": torch.get_num_threads(), "ok": True, "advice": ""})
    shipped = [(f"weights of {world.name}", world.weights) for world in WORLDS.values()]
    shipped += [(f"scorer of {world.name}", world.scorer) for world in WORLDS.values() if world.scorer]
    for what, weights in shipped:
        advice = "" if weights.is_file() else "reinstall thalweg"
        rows.append({"what": what, "value": weights.name, "ok": weights.is_file(), "advice": advice})
    return rows


def _prompts_at_hand(data: Any) -> Any:
    """The prompts of a file that is there: they may ask for sizes."""
    from thalweg.training.data.prompts import open_prompts

    return open_prompts(data, None) if Path(data.prompts).is_file() and not data.streaming else ()


def print_plan(recipe: Any) -> None:
    """The resolved recipe, how an iteration divides, and an estimate of passes and memory."""
    from thalweg.core.processes import connect, disconnect
    from thalweg.training.policy import load_policy
    from thalweg.training.preflight.estimate import estimate, report, size_of
    from thalweg.training.preflight.plan import batch_plan

    processes = connect()
    size, prompts = size_of(recipe.model), _prompts_at_hand(recipe.data)
    if size is None:
        estimated, plan = None, batch_plan(recipe, load_policy(recipe), processes.count, prompts)
    else:
        estimated = estimate(recipe, size, processes.count, prompts)
        plan = estimated.plan
    disconnect(processes)
    if not processes.is_first:
        return
    typer.echo(recipe.to_yaml())
    most = "at most " if plan.depends_on_rewards else ""
    typer.echo(
        f"# each of {recipe.iterations} iterations: {plan.prompts} prompts x {plan.group_size} = "
        f"{plan.samples} samples"
        f" on {plan.processes} process(es), {plan.updates} update(s)\n"
        f"# passes of one sample: {plan.rollout_passes} in the rollout, {most}{plan.gradient_passes} with "
        f"gradient, {most}{plan.other_passes} of anchors and sweeps; "
        f"{most}{plan.evaluations * recipe.iterations} forwards in all"
    )
    if estimated is not None:
        typer.echo("\n".join(f"# {line}" for line in report(estimated, recipe.iterations)))
        return
    typer.echo(
        f"# memory: {plan.stored_bytes / 2**20:.1f} MiB of stored states, "
        f"{plan.weight_bytes / 2**20:.1f} MiB of "
        "weights, gradients and optimizer state, besides activations of one micro-batch"
    )
