import pytest

pytest.importorskip("diffusers")

from bf16 import apart, rise, write


def test_rise_and_distance_are_of_means_over_a_tenth():
    one, other = [0.0] * 10 + [1.0] * 10, [0.0] * 9 + [1.0] * 11
    assert rise(one) == 1
    assert apart(one, one) == 0
    assert apart(one, other) == 0.5  # 20 iterations: means of two, and one of the two is another


def test_the_table_holds_the_precisions_against_each_other_and_against_seeds(tmp_path):
    steep, flat = [0.0] * 10 + [2.0] * 10, [0.0] * 10 + [1.0] * 10
    write(tmp_path, {"float32": {0: steep, 1: flat}, "bfloat16": {0: steep, 1: steep}})
    said = (tmp_path / "table.md").read_text()
    assert "| 0 | 2.0000 | 2.0000 | 0.0% of the rise in float32 |" in said
    assert "| 1 | 1.0000 | 2.0000 | 100.0% of the rise in float32 |" in said
    assert "between seeds in float32: 50.0% of the first one's rise" in said
