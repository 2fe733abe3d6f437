"""Fixtures of these tests."""

from training.small_runs import tiny_world

__all__ = ["tiny_world"]
