import pytest
from overhead import overhead

from training.small_runs import small, tiny_world  # noqa: F401


@pytest.mark.parametrize("name", ["flow-grpo", "diffusion-nft"])
def test_iterations_are_held_against_the_passes_they_count(name, tiny_world):  # noqa: F811
    measured = overhead(small(name))
    assert measured["model"] > 0
    assert measured["ratio"] == pytest.approx(measured["iteration"] / measured["model"])
