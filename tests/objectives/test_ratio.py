import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from thalweg.core.values import Transitions
from thalweg.objectives.ratio import KL, clipped, transition_of


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    # c = .2. The slope is d loss / d log ratio: -A rho, or 0 where the clip holds.
    [
        (1.5, 2.0, -2.4, 0.0),  # better and already likelier: held at 1.2
        (1.5, -2.0, 3.0, 3.0),  # worse but likelier: free, pushed back
        (0.5, 2.0, -1.0, -1.0),  # better but less likely: free, pulled
        (0.5, -2.0, 1.6, 0.0),  # worse and already less likely: held at .8
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_holds_what_went_far_enough_and_frees_the_rest(ratio, advantage, loss, slope):
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    terms, clip_fraction = clipped(log_ratio, torch.tensor([[advantage]], dtype=torch.float64), 0.2)
    terms.sum().backward()
    assert terms.item() == pytest.approx(loss, abs=1e-12)
    assert log_ratio.grad.item() == pytest.approx(slope, abs=1e-12)
    assert clip_fraction.item() == (slope == 0 and advantage != 0)


def test_a_held_ratio_may_be_infinite():
    log_ratio = torch.tensor([1000.0], requires_grad=True)
    terms, _ = clipped(log_ratio, torch.tensor([[2.0]]), 0.2)
    terms.sum().backward()
    assert terms.item() == pytest.approx(-2.4) and log_ratio.grad.item() == 0


def test_each_advantage_is_clipped_by_itself_and_the_terms_are_added():
    log_ratio = torch.tensor([1.5]).log()
    terms, clip_fraction = clipped(log_ratio, torch.tensor([[2.0, -2.0, 1.0]]), 0.2)
    assert terms.item() == pytest.approx(-2.4 + 3.0 - 1.2)
    assert clip_fraction.item() == pytest.approx(2 / 3)


def rows_of(count: int = 4, shape=(2, 3)) -> Transitions:
    generator = torch.Generator().manual_seed(0)
    number, column = torch.ones(count, dtype=torch.float64), torch.arange(count)
    return Transitions(
        x=torch.randn(count, *shape, dtype=torch.float64, generator=generator),
        x_next=torch.randn(count, *shape, dtype=torch.float64, generator=generator),
        sigma=number * 0.8,
        sigma_next=number * 0.5,
        k=number * 0.4,
        std=torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)[:count],
        old_log_prob=number,
        advantages=number[:, None],
        weight=number,
        condition=column,
        prompt_slot=column,
        seed_group=column,
        sample=column,
        step=column,
        depth=column,
        parent=column,
        behaviour_log_prob=number,
    )


def mean_of(rows: Transitions, velocity: torch.Tensor) -> torch.Tensor:
    """(1-σ') x̂0 + k ε̂ at σ = .8, σ' = .5, k = .4."""
    return 0.5 * (rows.x - 0.8 * velocity) + 0.4 * (rows.x + 0.2 * velocity)


def test_three_distances_to_the_reference():
    rows, generator = rows_of(), torch.Generator().manual_seed(1)
    v, v_reference = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=generator)
    std = rows.std.view(-1, 1, 1)
    exact = kl_divergence(Normal(mean_of(rows, v), std), Normal(mean_of(rows, v_reference), std))
    expected = {
        "exact": exact.mean((1, 2)),
        # (mean - mean_ref)² / (2 g²) with s² = g² (σ - σ').
        "published": ((mean_of(rows, v) - mean_of(rows, v_reference)) ** 2 / (2 * std**2 / 0.3)).mean((1, 2)),
        "velocity": ((v - v_reference) ** 2).mean((1, 2)),
    }
    now, reference = transition_of(rows, v), transition_of(rows, v_reference)
    for kind, values in expected.items():
        assert_close(KL[kind](rows, now, reference), values)
        assert_close(KL[kind](rows, now, now), torch.zeros(4, dtype=torch.float64))


def test_a_stored_step_is_scored_again_without_its_kernel():
    rows, v = rows_of(), torch.full((4, 2, 3), 0.3, dtype=torch.float64)
    expected = Normal(mean_of(rows, v), rows.std.view(-1, 1, 1)).log_prob(rows.x_next).mean((1, 2))
    assert_close(transition_of(rows, v).log_prob(rows.x_next), expected)
