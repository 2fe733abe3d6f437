import overhead
import pytest

from training.small_runs import small, tiny_world  # noqa: F401


@pytest.mark.parametrize("name", ["flow-grpo", "diffusion-nft"])
def test_an_iteration_is_held_against_the_passes_it_counts(name, tiny_world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(overhead, "ITERATIONS", 1)
    measured = overhead.overhead(small(name))
    assert measured["model"] > 0
    assert measured["ratio"] == pytest.approx(measured["iteration"] / measured["model"])
    assert measured["lowest"] == measured["ratio"] == measured["highest"]
