"""Checkpoints: written whole or not at all, as safetensors and JSON.

A folder is filled under another name, flushed to the disk, and renamed into place; so whatever instant a run
is killed at, every folder with a number for a name is complete.

Tensors are written whole by the first process, gathered one set at a time where they live in shards. So any
number of processes resumes a run, sharded or not. (torch.distributed.checkpoint would keep the shards apart,
but its metadata is a pickle.)
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes
from thalweg.models.shards import put, whole
from thalweg.models.weights import POLICY, NamedWeights

FORMAT = 1
REPLAY = "replay.safetensors"


@dataclass
class State:
    """What a run must remember besides its tensors."""

    iteration: int = 0
    """Iterations done."""
    updates: int = 0
    evaluations: int = 0
    backwards: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    equal_in_a_row: int = 0
    """Iterations in a row in which rewards told no samples apart."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor time that the first process spent in iterations."""
    best: float | None = None
    """Best evaluation so far, for `keep_best`."""
    best_iteration: int | None = None


def save(
    folder: Path,
    state: State,
    weights: NamedWeights,
    optimizers: Mapping[str, torch.optim.Optimizer],
    recipe: str,
    held: Mapping[str, Tensor] | None = None,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
) -> Path:
    """Write checkpoint `state.iteration` of the run, unless it is there; `held` is the replay buffer.

    Every process must ask; the first one writes.
    """
    final = folder / f"{state.iteration:08d}"
    if processes.any(processes.is_first and final.exists()):
        return final
    tables = _tables(weights, optimizers, recipe)
    if not processes.is_first:
        for _ in tables:  # their shards are needed
            pass
        return final
    partial = folder / f".partial-{os.getpid()}-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, tensors, metadata in tables:
            save_file(tensors, partial / name, metadata)
        if held:
            save_file({n: t.detach().cpu().contiguous() for n, t in held.items()}, partial / REPLAY)
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, **asdict(state)}, indent=1))
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        os.replace(partial, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:  # a full disk is one or the other, by who was writing
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"checkpoint {final}: cannot be written ({getattr(error, 'strerror', None) or error}); earlier "
            "checkpoints are whole; make room and resume the run"
        ) from error
    return final


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.name.isdigit()) if folder.is_dir() else []


def prune(folder: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the last few checkpoints and the best one, and what interrupted writes left behind."""
    for path in complete(folder)[:-keep_last]:
        if best is None or int(path.name) != best:
            shutil.rmtree(path)
    for path in folder.glob(".partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def load(path: Path, weights: NamedWeights, optimizers: Mapping[str, torch.optim.Optimizer]) -> State:
    """Put a checkpoint's tensors into the run's; raises UserError where they do not fit."""
    state = read_state(path)
    for name in weights.names:
        fill(weights.tensors(name), path / f"weights.{name}.safetensors")
    for of, optimizer in optimizers.items():
        stored = _read(path / _optimizer_file(of))
        for name, parameter in weights.parameters.items():
            moments = {
                key.rsplit("::", 1)[1]: t for key, t in stored.items() if key.rsplit("::", 1)[0] == name
            }
            if moments:
                optimizer.state[parameter] = {
                    key: _as_parameter(t, parameter) if t.ndim else t for key, t in moments.items()
                }
    return state


def replayed(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's replay buffer; none where it was empty."""
    return _read(path / REPLAY) if (path / REPLAY).exists() else {}


def read_state(path: Path) -> State:
    try:
        values = json.loads((path / "state.json").read_text())
        if values.pop("format") != FORMAT:
            raise UserError(
                f"checkpoint {path}: written in another format; resume it with the version that wrote it"
            )
        return State(**values)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"checkpoint {path}: state.json is missing or damaged ({error}); remove the folder to resume "
            "from the checkpoint before it"
        ) from error


def fill(tensors: dict[str, Tensor], file: Path) -> None:
    """Copy a safetensors file into tensors of the same names and shapes."""
    stored = _read(file)
    if stored.keys() != tensors.keys():
        odd = sorted(stored.keys() ^ tensors.keys())
        raise UserError(
            f"{file}: holds other parameters than this model ({len(odd)} differ, such as '{odd[0]}'); "
            "use the model and LoRA settings it was written with"
        )
    for name, tensor in tensors.items():
        if stored[name].shape != tensor.shape:
            raise UserError(
                f"{file}: '{name}' has shape {tuple(stored[name].shape)}, this model's has "
                f"{tuple(tensor.shape)}; "
                "use the model and LoRA settings it was written with"
            )
        put(tensor, stored[name])


def weights_file(source: str) -> Path:
    """The policy weights that a run's folder, a checkpoint's folder or a file stands for."""
    path = Path(source)
    if path.is_file():
        return path
    folders = complete(path / "checkpoints") or [path]
    file = folders[-1] / f"weights.{POLICY}.safetensors"
    if not file.is_file():
        raise UserError(
            f"'{source}': no weights there; give a run, one of its checkpoints, or a safetensors file"
        )
    return file


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt"):
            return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: missing or damaged ({error}); use another file, or remove its checkpoint to resume "
            "from the one before"
        ) from error


def _optimizer_file(name: str) -> str:
    return "optimizer.safetensors" if name == POLICY else f"optimizer.{name}.safetensors"


def _tables(
    weights: NamedWeights, optimizers: Mapping[str, torch.optim.Optimizer], recipe: str
) -> Iterator[tuple[str, dict[str, Tensor], dict[str, str] | None]]:
    """(file, tensors, metadata) of every set and every optimizer; all processes go through it together."""
    for name in weights.names:
        tensors = {n: _stored(t) for n, t in weights.tensors(name).items()}
        yield f"weights.{name}.safetensors", tensors, {"format": str(FORMAT), "recipe": recipe}
    for name, optimizer in optimizers.items():
        moments = {
            f"{n}::{key}": _stored(torch.as_tensor(value))
            for n, parameter in weights.parameters.items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        yield _optimizer_file(name), moments, None


def _stored(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).cpu().contiguous()


def _as_parameter(stored: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device, cut as it is."""
    moment = torch.empty_like(parameter.detach(), dtype=stored.dtype)
    put(moment, stored)
    return moment


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
