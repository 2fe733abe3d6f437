import pytest
import torch
from torch.testing import assert_close

from thalweg.models.rounding import rounded


def test_four_bits_hold_eight_sizes_and_a_sign_of_each_block():
    # The largest of a block is 6 units. Units here: 1, then 10.
    values = torch.tensor([6.0, 0.2, -0.3, 1.2, -2.4, 2.6, 3.6, -5.1, 60.0, -0.2, 0.0, 26.0])
    expected = torch.tensor([6.0, 0.0, -0.5, 1.0, -2.0, 3.0, 4.0, -6.0, 60.0, 0.0, 0.0, 30.0])
    assert_close(rounded(values, "fp4", 8), expected)


def test_eight_bits_are_whole_numbers_of_a_127th_of_the_largest():
    values = torch.tensor([[127.0, 3.4], [-126.6, 0.6], [1.27, 0.994]])
    expected = torch.tensor([[127.0, 3.0], [-127.0, 1.0], [1.27, 0.99]])
    assert_close(rounded(values, "int8", 4), expected)


@pytest.mark.parametrize("format", ["fp4", "int8"])
@pytest.mark.parametrize("shape", [(3, 5), (16,), (1,), (2, 2, 2)])
def test_what_is_rounded_stays_when_it_is_rounded_again(format, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    once = rounded(values, format, 4)
    assert once.shape == values.shape
    assert_close(rounded(once, format, 4), once)
    # Half of the widest gap: 1 of 6 units, or half of a 127th.
    room = {"fp4": 1 / 6, "int8": 0.5 / 127}[format] * values.abs().max()
    assert (once - values).abs().max() <= room * 1.001


def test_a_block_of_zeros_stays_zero():
    assert (
        rounded(torch.zeros(5), "fp4", 2).tolist() == rounded(torch.zeros(5), "int8", 2).tolist() == [0] * 5
    )
