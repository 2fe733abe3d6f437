"""Are the processes of a run one run? They must be connected, alike, and see different data."""

import hashlib
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping
from importlib import metadata

import torch

from thalweg.core.errors import UserError
from thalweg.core.finding import Finding
from thalweg.core.noise import Address, normals
from thalweg.core.processes import Processes
from thalweg.training.recipe.schema import Recipe

MESSAGE = 1 << 20
"""Numbers in the message whose adding is timed: 4 MiB."""
TIMES = 5


def require_alike(processes: Processes, recipe: Recipe) -> None:
    """Raises UserError, on every process, where they run other code or another recipe."""
    # The machine's own reading of a file may differ, so what counts is what came of it.
    text = hashlib.sha256(recipe.to_yaml().encode()).hexdigest()[:12]
    if odd := _odd_one(processes, versions() | {"recipe": text}):
        raise UserError(f"{odd}; give every process the same code and the same command")


def versions() -> dict[str, str]:
    """What must be the same everywhere."""
    packages = {name: metadata.version(name) for name in ("thalweg", "torch")}
    return {"python": platform.python_version(), **packages}


def examine_processes(processes: Processes) -> list[Finding]:
    """Connected, alike, on data of their own, and how fast they add gradients."""
    if processes.count == 1:
        advice = "torchrun --nproc_per_node 2 -m thalweg doctor processes"
        return [Finding("processes", "1, not connected to any other", False, f"start several: {advice}")]
    hosts = Counter(processes.texts(socket.gethostname()))
    named = ", ".join(f"{count} on {host}" for host, count in hosts.items())
    odd = _odd_one(processes, versions())
    alike = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        Finding("processes", f"{processes.count} connected: {named}", True),
        Finding("versions", odd or alike, not odd, "install the same everywhere" if odd else ""),
        *_noise(processes),
        *_devices(processes),
        _adding(processes),
    ]


def _odd_one(processes: Processes, facts: Mapping[str, str]) -> str:
    """The first difference from the first process, in words; empty where there is none."""
    told = [text.split("\n") for text in processes.texts("\n".join(facts.values()))]
    for rank, values in enumerate(told):
        for name, value, first in zip(facts, values, told[0], strict=True):
            if value != first:
                return f"process {rank} has {name} {value}, process 0 has {first}"
    return ""


def _noise(processes: Processes) -> list[Finding]:
    """One address gives one noise everywhere; the shares of a batch are different noises."""
    batch = [Address(0, "initial", 0, prompt_slot=slot) for slot in range(2 * processes.count)]
    all_of_it = processes.texts(_hash(normals(batch, (64,))))
    mine = processes.texts(_hash(normals([batch[i] for i in processes.share(len(batch))], (64,))))
    same, different = len(set(all_of_it)) == 1, len(set(mine)) == processes.count
    return [
        Finding(
            "noise of a seed",
            "the same on all processes" if same else "differs between processes",
            same,
            "" if same else "their processors draw other numbers: use machines of one kind",
        ),
        Finding(
            "data",
            "each process has its own" if different else "some processes have the same",
            different,
            "" if different else "start them with torchrun, which gives each its RANK",
        ),
    ]


def _devices(processes: Processes) -> list[Finding]:
    """Two processes on one accelerator would take turns."""
    if not torch.cuda.is_available():
        return []
    taken = processes.texts(f"{socket.gethostname()} cuda:{torch.cuda.current_device()}")
    twice = [place for place, count in Counter(taken).items() if count > 1]
    advice = f"LOCAL_RANK={os.environ.get('LOCAL_RANK', 'missing')} chooses it; start as many as there are"
    value = f"two processes on {twice[0]}" if twice else "one for each process"
    return [Finding("accelerators", value, not twice, advice if twice else "")]


def _adding(processes: Processes) -> Finding:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sent = torch.full((MESSAGE,), float(processes.rank), device=device)
    seconds, expected, right = [], float(sum(range(processes.count))), True
    for _ in range(TIMES + 1):
        given = sent.clone()
        processes.wait()
        started = time.perf_counter()
        processes.add([given])
        right &= bool((given == expected).all())  # waits for the device too
        seconds.append(time.perf_counter() - started)
    took = sorted(seconds[1:])[TIMES // 2]  # the first one connects
    value = f"{took * 1e3:.1f} ms for {MESSAGE * 4 / 2**20:.0f} MiB" if right else "wrong sum"
    return Finding("adding gradients", value, right, "" if right else "the connection is broken")


def _hash(noise: torch.Tensor) -> str:
    return hashlib.sha256(noise.numpy().tobytes()).hexdigest()
