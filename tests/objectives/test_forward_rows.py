import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from thalweg.core.noise import Address
from thalweg.core.values import Prompt
from thalweg.objectives.forward_rows import samples
from thalweg.objectives.sigma_draw import Stratified
from thalweg.rollout import Deterministic, Rollout, Root, grow

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))
GRID = torch.linspace(1, 0.125, 8)
ROOTS = [Root(slot, group, slot * 2 + group, slot) for slot in (0, 1) for group in (0, 1)]


def test_one_level_falls_into_each_stratum():
    draw = Stratified(num_sigmas=4, sigma_min=0.2, sigma_max=1.0)
    drawn = torch.stack([draw.draw(Address(0, "sigmas", iteration), GRID) for iteration in range(500)])
    for stratum in range(4):
        low = 0.2 + 0.2 * stratum
        column = drawn[:, stratum]
        assert low <= column.min() and column.max() <= low + 0.2 + 1e-6
        # Even inside the stratum: mean in the middle, standard error .0026.
        assert abs(column.mean() - low - 0.1) < 0.01


def test_levels_are_shifted_towards_noise():
    plain, shifted = (Stratified(shift=s).draw(Address(0, "sigmas"), GRID) for s in (1.0, 3.0))
    assert_close(shifted, 3 * plain / (1 + 2 * plain))


@pytest.mark.parametrize("wrong", [{"num_sigmas": 0}, {"sigma_max": 1.5}, {"shift": 0}])
def test_levels_outside_the_flow_are_refused(wrong):
    with pytest.raises(ValidationError):
        Stratified(**wrong)


def forest_of(policy, roots):
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=3)
    return grow(policy, PROMPTS, roots, rollout, seed=0, iteration=4)


def test_each_sample_stands_under_every_level_drawn_for_it_with_noise_of_its_own(linear_policy):
    forest, draw = forest_of(linear_policy(), ROOTS), Stratified(num_sigmas=3)
    rows = samples(forest, torch.arange(8.0).view(4, 2), draw, seed=0, iteration=4)
    assert len(rows) == 12
    assert_close(rows.x0, forest.latents.repeat_interleave(3, 0))
    assert_close(rows.advantages, torch.arange(8.0).view(4, 2).repeat_interleave(3, 0))
    assert rows.step.tolist() == [0, 1, 2] * 4
    assert rows.condition.tolist() == rows.prompt_slot.tolist() == [0] * 6 + [1] * 6
    assert rows.sample.tolist() == forest.leaves.sample.repeat_interleave(3).tolist()
    assert rows.weight.tolist() == [1] * 12
    assert len(set(rows.sigma.tolist())) == 12
    noise = rows.noise.flatten()
    assert len(set(noise.tolist())) == len(noise)
    assert (rows.sigma.view(4, 3).diff(dim=1) > 0).all()


def test_levels_and_noise_do_not_depend_on_what_else_is_there(linear_policy):
    draw = Stratified()
    whole = samples(forest_of(linear_policy(), ROOTS), torch.ones(4, 1), draw, seed=0, iteration=4)
    part = samples(forest_of(linear_policy(), ROOTS[2:]), torch.ones(2, 1), draw, seed=0, iteration=4)
    for name in ("x0", "sigma", "noise", "sample"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[6:])
    again = samples(forest_of(linear_policy(), ROOTS), torch.ones(4, 1), draw, seed=0, iteration=5)
    assert (
        not torch.isclose(again.noise, whole.noise).any()
        and not torch.isclose(again.sigma, whole.sigma).any()
    )
