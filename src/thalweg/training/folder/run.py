"""The folder of a run: resolved recipe, provenance, metrics, samples. Anyone can read it without us."""

import errno
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole
from thalweg.training.recipe.schema import Recipe

FORMAT = 1
OURS = "recipe.yaml"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""No room, or no permission: what a user can mend."""


class RunFolder:
    """Where one run writes. The first process writes, the others look on."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def require_new(self) -> None:
        """Raises UserError where the folder is taken."""
        if (self.path / OURS).exists():
            raise UserError(
                f"{self.path}: holds a run already; `thalweg resume {self.path}` continues it, --out "
                "names another"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; give a new folder with --out")
        if self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path}: is not empty; give a new folder with --out")

    def start(self, recipe: Recipe, command: list[str]) -> None:
        """Create the folder; raises UserError where it cannot be written."""
        if not self.writes:
            return
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            self.write_recipe(recipe)
            write_whole(self.path / "run.json", json.dumps(_provenance(recipe, command), indent=1))
            self.metrics.touch()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); give another folder with --out"
            ) from error

    def write_recipe(self, recipe: Recipe) -> None:
        if self.writes:
            write_whole(self.path / OURS, recipe.to_yaml())

    def log(self, event: str, values: Mapping[str, Any]) -> None:
        """One JSON line, flushed. JSON has no infinity: a value that is not finite is null."""
        if not self.writes:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **finite}, allow_nan=False) + "\n")

    def forget_after(self, iteration: int) -> None:
        """Drop metric lines of later iterations, and a line that an interruption cut off."""
        if not self.writes or not self.metrics.exists():
            return
        kept = [json.dumps(line) for line in read_metrics(self.metrics) if line["iteration"] <= iteration]
        write_whole(self.metrics, "".join(line + "\n" for line in kept))

    def forget_evaluations_between(self, every: int) -> None:
        """Drop evaluations off the schedule: a run that goes on past its end has none there."""
        if not self.writes or not self.metrics.exists():
            return
        lines = read_metrics(self.metrics)
        kept = [x for x in lines if x["event"] != "eval" or x["iteration"] % (every or sys.maxsize) == 0]
        write_whole(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def locked(self, *, is_new: bool = False) -> Iterator[None]:
        """Hold the folder, which a new run makes: two processes writing one run would destroy it.

        Raises UserError too where something inside the block finds no room to write.
        """
        if not self.writes:
            yield
            return
        import fcntl

        try:
            if is_new:
                self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); give a run's folder, or a new one with "
                "--out"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.path}: another process is training there; stop it first, or give another "
                    "folder with --out"
                ) from None
            try:
                yield
            except OSError as error:
                if error.errno not in UNWRITABLE:
                    raise
                raise UserError(
                    f"{error.filename or self.path}: cannot be written ({error.strerror}); make room and "
                    f"`thalweg resume {self.path}`"
                ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that was cut off while being written is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def default_folder(name: str) -> Path:
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _provenance(recipe: Recipe, command: list[str]) -> dict[str, Any]:
    packages = ("thalweg", "torch", "numpy", "pydantic", "safetensors", "peft")
    return {
        "format": FORMAT,
        "name": recipe.name,
        "seed": recipe.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "git": _revision(),
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _revision() -> str | None:
    """The git revision of the working directory, if it is a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def command_line() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
