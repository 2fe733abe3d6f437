"""How long each stage of an iteration takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by stage since the last reading."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """`time/<stage>` of every stage, and start anew."""
        read = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return read
