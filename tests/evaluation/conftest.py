"""Fixtures of these tests."""

from evaluation.synthetic_run import write_run

__all__ = ["write_run"]
