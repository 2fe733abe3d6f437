import torch
from torch.testing import assert_close

from thalweg.flow.broadcast import over_latents, per_sample


def test_one_number_stands_for_every_sample_and_a_vector_keeps_one_each():
    x = torch.zeros(2, 3, 4)
    for value in (0.25, torch.tensor(0.25), torch.tensor([0.25, 0.25])):
        assert_close(per_sample(value, x), torch.tensor([0.25, 0.25]))
    assert_close(over_latents(torch.tensor([2.0, 3.0]), x), torch.tensor([[[2.0]], [[3.0]]]))


def test_half_precision_latents_are_met_in_float32_and_double_ones_in_float64():
    got = {
        dtype: per_sample(0.1, torch.zeros(1, 1, dtype=dtype)).dtype
        for dtype in (torch.bfloat16, torch.float64)
    }
    assert got == {torch.bfloat16: torch.float32, torch.float64: torch.float64}
