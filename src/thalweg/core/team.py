"""Workers on a Ray cluster (Moritz et al. 2018, arXiv:1712.05889): started, asked, and ended together.

Each worker is a Ray actor, on whatever machine has the processors it asks for. All teams of a process share
one connection; where it was made for them, the last one closes it.
"""

import importlib
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from thalweg.core.errors import UserError

PATIENCE = 20.0
"""Seconds in which a cluster's address must answer."""


@dataclass
class _Connection:
    """This process's connection to a cluster."""

    teams: int = 0
    """That are open."""
    ours: bool = False
    """Made by the first of them, and not by the user."""


_CONNECTION = _Connection()


@dataclass
class Team:
    """Equal workers: what each needs, and what to call them where something goes wrong."""

    name: str
    """What they work for, such as "reward 'ocr'"."""
    count: int
    cpus: float
    """Of each worker."""
    gpus: float
    address: str | None
    """Of the cluster; None is RAY_ADDRESS, or else a cluster of this machine."""
    address_key: str
    """Where a recipe says it."""
    remedy: str
    """What to do where a worker raises."""
    _workers: list[Any] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return bool(self._workers)

    def open(self, worker: type, *arguments: Any, timeout: float) -> None:
        """Start the workers, each as `worker(*arguments)`, and have each do its `open()`.

        Raises UserError where they have not done it after `timeout` seconds.
        """
        if find_spec("ray") is None:
            raise UserError(f"{self.name}: ray is not installed; pip install 'thalweg[ray]'")
        ray = _ray()
        if not ray.is_initialized():
            self._connect()
        _CONNECTION.teams += 1
        actor = ray.remote(worker).options(num_cpus=self.cpus, num_gpus=self.gpus)
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self._end)
            self._workers += [actor.remote(*arguments) for _ in range(self.count)]
            self.answers(self.ask("open", [()] * self.count), timeout)
            if_it_fails.pop_all()

    def share(self, value: Any) -> Any:
        """What stands for a large value in questions: it is sent to each machine once."""
        return _ray().put(value)

    def ask(self, method: str, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have the first workers begin, one a question; what `answers` takes."""
        pairs = zip(self._workers, questions, strict=False)
        return [getattr(worker, method).remote(*question) for worker, question in pairs]

    def answers(self, asked: Sequence[Any], timeout: float) -> list[Any]:
        """What the workers answer, in their order; raises UserError where one does not."""
        if not asked:
            return []
        ray = _ray()
        ray.wait(list(asked), num_returns=len(asked), timeout=timeout)
        found = []
        for number, question in enumerate(asked, 1):
            who = f"{self.name}: Ray worker {number} of {self.count}"
            try:
                found.append(ray.get(question, timeout=0))
            except ray.exceptions.RayActorError as error:
                raise UserError(
                    f"{who} died ({_line(error)}); look into Ray's logs, give it more memory or take fewer "
                    "workers, and resume the run"
                ) from error
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from error
                raise UserError(
                    f"{who} raised {type(error.cause).__name__}: {_line(error.cause)}; {self.remedy}, and "
                    "resume the run"
                ) from error
            except ray.exceptions.GetTimeoutError as error:
                there = {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
                raise UserError(
                    f"{who} gave no answer within {timeout:g} s; they need {self.count * self.cpus:g} CPUs "
                    f"and {self.count * self.gpus:g} GPUs of the cluster's {there['CPU']:g} and "
                    f"{there['GPU']:g}: take fewer workers, give each less, or raise timeout"
                ) from error
        return found

    def close(self) -> None:
        """End the workers, and the cluster where it was started for them."""
        if self.is_open:
            self._end()

    def _end(self) -> None:
        ray = _ray()
        for worker in self._workers:
            ray.kill(worker)
        self._workers.clear()
        _CONNECTION.teams -= 1
        if _CONNECTION.ours and _CONNECTION.teams == 0:
            ray.shutdown()
            _CONNECTION.ours = False

    def _connect(self) -> None:
        # A run tells nobody of itself.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self.address or os.environ.get("RAY_ADDRESS")
        try:
            if address is not None:
                _knock(address)
            _ray().init(address=self.address, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise UserError(
                f"{self.name}: no Ray cluster at {address or 'this machine'} ({str(error).splitlines()[0]}); "
                f"start it with `ray start`, or mend {self.address_key}"
            ) from error
        _CONNECTION.ours = True


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray itself says after minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _ray() -> Any:
    """Slow to import, and not everywhere."""
    return importlib.import_module("ray")


def _line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
