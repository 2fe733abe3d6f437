"""Nothing here may reach the network."""

import huggingface_hub.constants
import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The variable HF_HUB_OFFLINE is read at import, which is long ago."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
