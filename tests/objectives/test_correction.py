import math

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.core.values import Prompt, Transitions
from thalweg.flow import FlowSDE
from thalweg.objectives import ClippedRatio
from thalweg.objectives.correction import Correction
from thalweg.rollout import AllSteps, Rollout, Root, grow
from thalweg.training.backward import on_training_path

LOG2 = math.log(2)


def rows_of(gaps: list[float], samples: list[int]) -> Transitions:
    """Rows whose recomputed log-probs are that much above the rollout's."""
    count = len(gaps)
    number, column = torch.zeros(count), torch.tensor(samples)
    return Transitions(
        x=torch.zeros(count, 2),
        x_next=torch.zeros(count, 2),
        sigma=number,
        sigma_next=number,
        k=number,
        std=number,
        old_log_prob=torch.tensor(gaps) - 1,
        advantages=torch.ones(count, 1),
        weight=number + 1,
        condition=column,
        prompt_slot=column,
        seed_group=column,
        sample=column,
        step=column,
        depth=column,
        parent=column,
        behaviour_log_prob=number - 1,
    )


ROWS = rows_of([LOG2, -LOG2 / 2, -LOG2, -LOG2, 3 * LOG2], [7, 7, -2, -2, 4])


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        # Sums over samples: log 2 / 2, -2 log 2, 3 log 2.
        ({}, [2**0.5, 2**0.5, 1 / 4, 1 / 4, 2]),
        ({"limit": 100}, [2**0.5, 2**0.5, 1 / 4, 1 / 4, 8]),
        ({"floor": 0.5}, [2**0.5, 2**0.5, 1 / 2, 1 / 2, 2]),
        ({"reduce": "mean"}, [2**0.25, 2**0.25, 1 / 2, 1 / 2, 2]),
        ({"weigh": "step", "limit": 4}, [2, 2**-0.5, 1 / 2, 1 / 2, 4]),
        ({"weigh": "none"}, [1, 1, 1, 1, 1]),
        ({"num_elements": 2, "limit": 100}, [2, 2, 1 / 16, 1 / 16, 64]),
    ],
)
def test_weights_are_held_ratios_of_densities(rule, weights):
    weight, keep = Correction(**rule).apply(ROWS)
    assert_close(weight, torch.tensor(weights, dtype=torch.float32))
    assert keep.all()


def test_samples_too_far_from_the_rollout_are_rejected_whole():
    # Means over steps: log 2 / 4, -log 2, 3 log 2.
    assert Correction(accept=(0.6, 2.0)).apply(ROWS)[1].tolist() == [True, True, False, False, False]
    assert Correction(accept=(0.4, 9.0)).apply(ROWS)[1].tolist() == [True] * 5


def test_a_shifted_engine_shows_as_the_divergence_of_its_steps(linear_policy):
    # o - b of x drawn under b: mean -e² / (2 s²), standard deviation e / (s sqrt(d)), with e = J · .3.
    policy = linear_policy((4,))
    policy.weights.add("engine")
    policy.weights.tensors("engine")["bias"].fill_(0.3)
    rollout = Rollout(plan=AllSteps(), group_size=1500, steps=4, kernel=FlowSDE(), weights="engine")
    roots = [Root(0, group, group, 0) for group in range(1500)]
    forest = grow(policy, [Prompt("")], roots, rollout, seed=0, iteration=0)
    objective = ClippedRatio(
        old_log_prob="recompute", correction=Correction(weigh="none", accept=(0.999, 1.001))
    )
    rows = objective.experience(forest, forest.advantages(torch.ones(1500, 1)), seed=0, iteration=0)
    corrected, metrics = on_training_path(objective, policy, rows, forest.condition, 64, Processes())
    gap = corrected.old_log_prob - rows.old_log_prob
    for step in range(3):
        of = rows.step == step
        sigma, sigma_next, k, s = (c[of][0].item() for c in (rows.sigma, rows.sigma_next, rows.k, rows.std))
        e = 0.3 * ((1 - sigma_next) * sigma - k * (1 - sigma))
        assert gap[of].mean().item() == pytest.approx(-(e**2) / (2 * s**2), abs=4 * e / s / 2 / 38.7)
        assert gap[of].std().item() == pytest.approx(e / s / 2, rel=0.08)
    assert metrics["correction/gap"] == pytest.approx(gap.abs().mean().item(), rel=1e-5)
    rejected = corrected.advantages.flatten() == 0
    assert metrics["correction/rejected"] == pytest.approx(rejected.float().mean().item())
    assert 0.5 < metrics["correction/rejected"] < 1
