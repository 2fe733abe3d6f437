"""Stopping a run cleanly: Ctrl-C or SIGTERM, and how long it has gone on."""

import signal
import time
from types import FrameType
from typing import Any


class StopRequest:
    """Inside the block a first Ctrl-C or SIGTERM asks the run to save and stop; a second Ctrl-C stops it at
    once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._start = time.monotonic()
        self._before = 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._handlers[number] = signal.signal(number, self._ask)
            except ValueError:  # signals belong to the main thread; elsewhere the caller decides
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start_counting(self, before: float) -> None:
        """`before` seconds are spent already."""
        self._start, self._before = time.monotonic(), before

    def seconds(self) -> float:
        """Since the run began, over all resumptions."""
        return self._before + time.monotonic() - self._start

    def requested(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
