"""The measurements of speed run, and what they count is what the networks do."""

from importlib.util import find_spec

import pytest

if find_spec("diffusers") is None:
    pytest.skip("needs diffusers", allow_module_level=True)


import gpu
import loops


@pytest.mark.parametrize("name", ["sd3.5-medium", "flux1-dev"])
def test_a_tiny_network_is_measured_as_a_large_one_would_be(name):
    line = gpu.measure(
        name, gpu.parsed(["--tiny", "--device", "cpu", "--batch", "2", "--steps", "3", "--repeats", "1"])
    )
    assert line["images_per_second"] > 0 and line["trained_steps_per_second"] > 0
    # A backward pass through frozen weights costs about a forward pass; a rollout makes 3 of them.
    assert 1.6 < 3 * line["update_tflop"] / line["rollout_tflop"] < 2.6
    assert 0 < line["mfu/rollout"] < 1
    assert line["mfu/update"] == pytest.approx(
        line["update_tflop"] / 2 * line["trained_steps_per_second"] / line["matmul_tflops"]
    )


def test_loops_of_ones_own_compute_the_same_and_pay_for_the_reference_pass(monkeypatch):
    passes = []
    velocity = loops.Straightforward.velocity

    def counted(*args, **options):
        passes.append(1)
        return velocity(*args, **options)

    def made(work, repeats):
        """Network passes of their loops, in the place of seconds; ours make none of theirs."""
        passes.clear()
        work()
        return len(passes) or 1

    monkeypatch.setattr(loops.Straightforward, "velocity", counted)
    monkeypatch.setattr(loops, "seconds", made)
    line = loops.measure("sd3", repeats=1)  # raises where the two loops differ
    assert line["saving/no_reference"] == 2  # one pass for the reference and one to train, against one
    assert line["trained_steps_per_second/theirs"] == loops.BATCH / 2


def test_the_seconds_of_a_work_are_the_median_of_its_repeats(monkeypatch):
    clock = iter([0, 9, 10, 13, 20, 21, 30, 32])  # a warm-up of 9, then 3, 1 and 2
    monkeypatch.setattr(loops.time, "process_time", lambda: next(clock))
    assert loops.seconds(lambda: None, repeats=3) == 2
