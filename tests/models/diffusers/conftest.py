"""Real families at toy size, offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported

import pytest

pytest.importorskip("diffusers")

from models.diffusers.stock import quiet, stock_run, tiny_folder, tiny_policy_of

quiet()

__all__ = ["stock_run", "tiny_folder", "tiny_policy_of"]
