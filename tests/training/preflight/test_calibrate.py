import pytest

from thalweg.core.errors import UserError
from thalweg.training.preflight.calibrate import Tally, calibrate
from thalweg.training.recipe.load import load_recipe
from training.small_runs import small

FLOW_SDE = {"kind": "flow_sde", "noise_level": 0.7}


@pytest.mark.parametrize(
    ("gaining", "losing", "next_noise"),
    # A coin for each of 64 is 8 apart, 10 % of 400 is 40; on either side.
    [
        (36, 28, 0.45),
        (28, 36, 0.45),
        (37, 27, 0.35),
        (27, 37, 0.35),
        (220, 180, 0.45),
        (180, 220, 0.45),
        (221, 179, 0.35),
        (179, 221, 0.35),
        (0, 0, 0.45),
    ],
)
def test_noise_grows_while_as_many_steps_gain_as_lose(gaining, losing, next_noise):
    assert Tally(0.5, 0.4, gaining, losing, 100).next_noise == pytest.approx(next_noise)


def test_noise_never_vanishes():
    assert Tally(0.5, 0.06, 0, 100, 100).next_noise == 0.05


def test_calibration_starts_at_the_kernels_own_noise_and_gives_a_kernel_for_every_drawn_step(tiny_world):
    recipe = small("dense-grpo", {"rollout.steps": 4, "rollout.kernel": FLOW_SDE})
    heard: list[list[Tally]] = []
    kernel = calibrate(recipe, 2, lambda number, tallies: heard.append(tallies))
    # Flow-SDE on uniform levels 1, .75, .5: g = .7 sqrt(1/(1 - .75)), .7 sqrt(3), .7.
    assert [t.noise for t in heard[0]] == pytest.approx([1.4, 0.7 * 3**0.5, 0.7], rel=1e-5)
    assert [t.sigma for t in heard[0]] == pytest.approx([1, 0.75, 0.5])
    assert [t.noise for t in heard[1]] == [t.next_noise for t in heard[0]]
    assert [g for _, g in kernel.levels] == pytest.approx([t.next_noise for t in heard[1]], abs=1e-4)
    samples = recipe.data.prompts_per_iteration * recipe.rollout.group_size
    assert all(t.count == samples and t.gaining + t.losing <= samples for round in heard for t in round)


def test_only_dense_credit_can_be_calibrated():
    with pytest.raises(UserError, match="flow-grpo has credit 'group'; give a recipe with credit 'dense'"):
        calibrate(load_recipe("flow-grpo"), 1)
