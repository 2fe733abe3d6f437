import torch

from thalweg.core.sizes import cut_out, stacked
from thalweg.core.values import Samples, with_latents_of


def test_rows_of_several_shapes_come_back_as_they_were():
    small, large = torch.arange(8.0).view(2, 2, 2), torch.arange(12.0).view(1, 3, 4)
    together = stacked([small, large])
    assert together.shape == (3, 12)
    assert torch.equal(cut_out(together[:2], (2, 2)), small)
    assert torch.equal(cut_out(together[2:], (3, 4)), large)
    assert together[0].tolist() == [0, 1, 2, 3] + [0] * 8
    assert stacked([small], 6).shape == (2, 6)


def test_every_column_with_latents_is_cut_and_the_others_stay():
    one = torch.ones(2)
    table = Samples(
        x0=torch.arange(10.0).view(2, 5),
        sigma=one,
        noise=torch.arange(10.0, 20.0).view(2, 5),
        advantages=torch.ones(2, 3),
        weight=one,
        condition=torch.arange(2),
        prompt_slot=torch.arange(2),
        seed_group=torch.arange(2),
        sample=torch.arange(2),
        step=torch.arange(2),
        regions=torch.arange(30.0).view(2, 3, 5),
    )
    cut = with_latents_of(table, (2, 2))
    assert cut.x0.tolist() == [[[0, 1], [2, 3]], [[5, 6], [7, 8]]]
    assert cut.noise[1].tolist() == [[15, 16], [17, 18]]
    assert cut.regions is not None and cut.regions.shape == (2, 3, 2, 2)
    assert cut.regions[0, 1].tolist() == [[5, 6], [7, 8]]
    assert cut.advantages is table.advantages
    assert with_latents_of(cut, (2, 2)) is cut
