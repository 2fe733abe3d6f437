from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.noise import Address, normals

HERE = Address(seed=3, purpose="transition", iteration=5, prompt_slot=2, seed_group=1, path=(0, 2), step=4)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"seed": 4},
        {"purpose": "initial"},
        {"iteration": 6},
        {"prompt_slot": 3},
        {"seed_group": 0},
        {"path": (0, 1)},
        {"path": (2, 0)},
        {"path": (0,)},
        {"path": (0, 2, 0)},
        {"step": 5},
        {"prompt_slot": 1, "seed_group": 2},  # the same numbers in another order
        {"step": 0, "path": (4, 0, 2)},
    ],
)
def test_an_address_that_differs_in_any_field_holds_other_numbers(elsewhere):
    there = replace(HERE, **elsewhere)
    assert there.key() != HERE.key()
    assert (there.normal((50,)) != HERE.normal((50,))).all()


def test_an_address_holds_the_same_numbers_for_ever():
    assert HERE.key() == 0xC8673C806A7F3583
    assert_close(
        HERE.normal((3,)),
        torch.tensor([-0.45955890417099, 0.15810897946357727, -0.21780194342136383]),
        rtol=0,
        atol=0,
    )
    assert_close(
        HERE.uniform((3,)),
        torch.tensor([0.3203588128089905, 0.16730070114135742, 0.16162985563278198]),
        rtol=0,
        atol=0,
    )
    assert HERE.permutation(6).tolist() == [0, 5, 3, 2, 4, 1]


def test_a_draw_does_not_depend_on_its_batch():
    addresses = [replace(HERE, step=step) for step in range(5)]
    batch = normals(addresses, (2, 3))
    for row, address in zip(batch, addresses, strict=True):
        assert_close(row, address.normal((2, 3)), rtol=0, atol=0)
    order = [3, 0, 4, 1, 2]
    assert_close(normals([addresses[i] for i in order], (2, 3)), batch[order], rtol=0, atol=0)


def test_draws_of_many_addresses_are_standard_normal_and_independent():
    draws = normals([replace(HERE, step=step) for step in range(2000)], (20,)).double()
    # Of 40 000 numbers: standard errors .005, .007 and, of the fourth moment, .05 = √(96/n).
    assert abs(draws.mean()) < 0.02
    assert abs(draws.var() - 1) < 0.03
    assert abs(draws.pow(4).mean() - 3) < 0.2
    neighbours = (draws[:-1] * draws[1:]).mean()
    assert abs(neighbours) < 0.02


def test_uniform_numbers_fill_the_unit_interval_evenly():
    draws = Address(0, "sigmas").uniform((40_000,))
    assert draws.min() >= 0 and draws.max() < 1
    assert_close(torch.histc(draws, 8, 0, 1) / 40_000, torch.full((8,), 1 / 8), atol=0.007, rtol=0)


def test_a_permutation_holds_every_number_once_and_each_order_as_often():
    first = [Address(0, "order", iteration).permutation(4).tolist() for iteration in range(2000)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in first)
    for place in range(4):  # 500 +- 4 standard errors of 19
        assert abs(sum(order[0] == place for order in first) - 500) < 80
