import pytest
from overhead import ITERATIONS, overhead

from training.small_runs import small


@pytest.mark.parametrize("name", ["flow-grpo", "diffusion-nft"])
def test_an_iteration_costs_no_less_than_the_passes_it_counts_are_timed_at(name, tiny_world):
    measured = overhead(small(name))
    assert measured["model"] > 0
    assert measured["ratio"] == pytest.approx(measured["iteration"] / measured["model"])
    assert ITERATIONS > 0
