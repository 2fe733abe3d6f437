"""A Ray cluster of this machine, for the tests that need one."""

import os
import time

import pytest


@pytest.fixture(scope="module")
def cluster():
    """Two processors of this machine."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def becomes_free(ray):
    """Whether no worker is left: Ray ends them in its own time."""
    end = time.monotonic() + 30
    while time.monotonic() < end and ray.available_resources().get("CPU") != 2.0:
        time.sleep(0.2)
    return ray.available_resources().get("CPU") == 2.0
