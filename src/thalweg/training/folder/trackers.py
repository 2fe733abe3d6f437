"""Metrics to trackers, where the recipe asks for them. The run's own files never depend on one."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thalweg.core.errors import UserError
from thalweg.training.recipe.schema import Recipe

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def require_installed(recipe: Recipe) -> None:
    """Raises UserError where a tracker of the recipe is not installed."""
    for name in recipe.run.trackers:
        _module(name)


class Trackers:
    """Sends every metric line to each tracker of `run.trackers`."""

    def __init__(self, recipe: Recipe, folder: Path | None) -> None:
        """`folder` is None on processes that write nothing."""
        self._sinks: list[tuple[Callable[[int, Mapping[str, float]], Any], Callable[[], Any]]] = []
        if folder is None:
            return
        for name in recipe.run.trackers:
            if name == "tensorboard":
                writer = _module(name).SummaryWriter(str(folder / "tensorboard"))

                def send(iteration: int, values: Mapping[str, float], writer: Any = writer) -> None:
                    for key, value in values.items():
                        writer.add_scalar(key, value, iteration)

                self._sinks.append((send, writer.close))
            else:
                tracker = _module(name)
                run = tracker.init(project="thalweg", name=folder.name, config=recipe.model_dump(mode="json"))

                def send_run(iteration: int, values: Mapping[str, float], run: Any = run) -> None:
                    run.log({**values, "iteration": iteration})

                self._sinks.append((send_run, run.finish))

    def log(self, event: str, line: Mapping[str, Any]) -> None:
        numbers = {f"{event}/{k}": float(v) for k, v in line.items() if isinstance(v, int | float)}
        for send, _ in self._sinks:
            send(line["iteration"], numbers)

    def close(self) -> None:
        for _, close in self._sinks:
            close()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        raise UserError(
            f"run.trackers: '{name}' is not installed; `pip install 'thalweg[{name}]'`, or remove it "
            "from the list"
        ) from error
