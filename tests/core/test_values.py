import torch
from torch.testing import assert_close

from thalweg.core.values import Condition, Samples

CONDITION = Condition({"words": torch.tensor([[1, 2], [3, 4]]), "pooled": torch.tensor([[0.0], [1.0]])})


def test_indexing_a_condition_takes_the_same_rows_of_every_tensor():
    taken = CONDITION.index(torch.tensor([1, 1, 0]))
    assert taken.tensors["words"].tolist() == [[3, 4], [3, 4], [1, 2]]
    assert taken.tensors["pooled"].flatten().tolist() == [1, 1, 0]
    assert len(taken) == 3


def test_a_repeated_condition_has_its_copies_side_by_side():
    assert CONDITION.repeat(2).tensors["words"].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_mixing_conditions_leaves_whole_numbers_as_they_are():
    other = Condition({"words": torch.tensor([[9, 9], [9, 9]]), "pooled": torch.tensor([[4.0], [5.0]])})
    mixed = CONDITION.lerp(other, 0.25)
    assert mixed.tensors["words"].tolist() == [[1, 2], [3, 4]]
    assert mixed.tensors["pooled"].flatten().tolist() == [1, 2]  # 3/4 · 0 + 1/4 · 4;  3/4 · 1 + 1/4 · 5


def test_noise_is_added_to_the_named_tensors_alone():
    moved = CONDITION.perturb({"pooled": torch.tensor([[1.0], [-1.0]])}, scale=0.5)
    assert moved.tensors["pooled"].flatten().tolist() == [0.5, 0.5]
    assert moved.tensors["words"].tolist() == [[1, 2], [3, 4]]


def test_rows_of_a_table_are_taken_by_number_or_by_mask():
    whole = torch.arange(3)
    table = Samples(
        x0=torch.arange(3.0)[:, None],
        sigma=torch.tensor([0.1, 0.2, 0.3]),
        noise=torch.zeros(3, 1),
        advantages=torch.arange(3.0)[:, None],
        weight=torch.ones(3),
        condition=whole,
        prompt_slot=whole,
        seed_group=whole,
        sample=whole,
        step=whole,
    )
    for rows in (torch.tensor([0, 2]), torch.tensor([True, False, True])):
        taken = table.index(rows)
        assert taken.sample.tolist() == [0, 2]
        assert_close(taken.x0.flatten(), torch.tensor([0.0, 2.0]))
        assert_close(taken.sigma, torch.tensor([0.1, 0.3]))
        assert len(taken) == 2
