"""The command line in this process: what a call prints and how it exits."""

import sys
from dataclasses import dataclass

import pytest

from thalweg.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """Lines on stderr that are not a run's progress."""
        return [line for line in self.err.splitlines() if not line[:8].replace(":", "").isdigit()]


@pytest.fixture
def thalweg(monkeypatch, capfd):
    """Calls `thalweg` with these arguments."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["thalweg", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1 if exit.code else 0
        return Outcome(code, *capfd.readouterr())

    return call
