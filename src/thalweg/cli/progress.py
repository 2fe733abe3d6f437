"""How a long run shows itself: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thalweg.core.processes import is_first_process
from thalweg.training.loop import Progress as Report
from thalweg.training.recipe.schema import Recipe


@contextmanager
def show(recipe: Recipe) -> Iterator[Report | None]:
    """A callback for the training loop; None on processes that show nothing."""
    console = Console(stderr=True)
    if not is_first_process():
        yield None
        return
    if not console.is_terminal:
        yield lambda event, line: _say(console.print, _sentence(event, line, recipe.iterations))
        return
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(recipe.name, total=recipe.iterations, state="starting")

        def advance(event: str, line: dict[str, Any]) -> None:
            if event != "train":
                _say(bar.console.print, _sentence(event, line, recipe.iterations))
            else:
                bar.update(task, completed=line["iteration"], state=_speed(line))

        yield advance


def _say(printed: Callable[..., None], sentence: str) -> None:
    """As it stands: a prompt's brackets are no markup, and a line is not broken."""
    printed(sentence, highlight=False, markup=False, soft_wrap=True)


def _speed(line: dict[str, Any]) -> str:
    return f"reward {line['reward']:.3f}  {line['samples_per_second']:.0f} images/s"


def _sentence(event: str, line: dict[str, Any], iterations: int) -> str:
    place = f"{time.strftime('%H:%M:%S')} {line['iteration']}/{iterations}"
    if event == "train":
        left = line["seconds"] / max(line["iteration"], 1) * (iterations - line["iteration"])
        return f"{place}  {_speed(line)}  {left / 60:.1f} min left"
    if event == "encoded":
        return (
            f"{place}  {line['prompts']:.0f} prompts encoded, {line['memory/released_mb']:.0f} MB given back"
        )
    if event == "warning":
        row = f" ({line['in_a_row']} iterations in a row)" if line["in_a_row"] > 1 else ""
        return f"{place}  warning: {line['text']}{row}"
    shown = {"accuracy": "accuracy", "reward": "held-out reward", "diversity": "diversity"}
    return f"{place}  " + "  ".join(
        f"{text} {line[name]:.3f}" for name, text in shown.items() if name in line
    )
