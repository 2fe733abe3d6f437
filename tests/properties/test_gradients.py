"""What every method owes its gradient: the same in any split into passes, by one sweep or two."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.core.values import Prompt, Transitions
from thalweg.flow import FlowSDE
from thalweg.objectives import ChunkRatio, ClippedRatio, Forward
from thalweg.objectives.forward import Pull
from thalweg.objectives.rules import Implicit
from thalweg.rollout import AllSteps, Rollout, Root, grow
from thalweg.training.backward import Report, backward, recompute_log_probs

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))
ROLLOUT = Rollout(plan=AllSteps(), group_size=3, steps=6, kernel=FlowSDE())
ROOTS = [Root(slot, group, slot * 3 + group, slot) for slot in (0, 1) for group in range(3)]
ADVANTAGES = torch.tensor([-1.5, 0.2, 1.3, 2.0, -0.7, -0.4])[:, None]


def experience(objective, policy, prompts=PROMPTS):
    """Rows of 6 samples, and the policy moved away from the one that made them."""
    forest = grow(policy, prompts, ROOTS, ROLLOUT, seed=0, iteration=0)
    rows = objective.experience(forest, forest.advantages(ADVANTAGES), seed=0, iteration=0)
    for name in ("old", "reference"):
        policy.weights.add(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in policy.weights.parameters.values():
            values += 0.02 * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return rows, forest.condition


def gradient(objective, policy, rows, condition, micro_batch, share=0.01) -> list[torch.Tensor]:
    for parameter in policy.weights.parameters.values():
        parameter.grad = None
    backward(objective, policy, rows, condition, micro_batch, share)
    return [p.grad.clone() for p in policy.weights.parameters.values()]


OBJECTIVES = [
    ClippedRatio(clip_range=0.01, kl_weight=0.1),
    ChunkRatio(chunks=(2, 3), clip_range=0.01),
    Forward(rule=Implicit(), pulls=(Pull(to="reference", weight=0.1),)),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_the_micro_batch_changes_a_networks_gradient_by_rounding_only(objective, tiny_policy, prompts):
    policy = tiny_policy()
    rows, condition = experience(objective, policy, prompts)
    whole = gradient(objective, policy, rows, condition, micro_batch=1000)
    largest = max(float(g.abs().max()) for g in whole)
    assert largest > 1e-4
    for micro_batch in (1, 4, 16):
        split = gradient(objective, policy, rows, condition, micro_batch)
        for one, other in zip(whole, split, strict=True):
            assert (one - other).abs().max() < 1e-6 + 2e-5 * largest


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1), (2, 3), (5,)])
def test_two_sweeps_give_the_gradient_of_one(chunks, linear_policy):
    policy = linear_policy((4,), torch.float64)
    objective = ChunkRatio(chunks=chunks, clip_range=0.003)
    rows, condition = experience(objective, policy)
    columns = {n: c.double() if c.is_floating_point() else c for n, c in vars(rows).items() if c is not None}
    rows = Transitions(**columns)
    one = gradient(objective, policy, rows, condition, micro_batch=30)
    assert one[0].abs().max() > 1e-4
    for micro_batch in (1, 7, 29):
        two = gradient(objective, policy, rows, condition, micro_batch)
        assert_close(two, one, rtol=1e-10, atol=1e-10)


def test_two_sweeps_cost_one_more_forward_a_row(linear_policy):
    policy, objective = linear_policy(), ChunkRatio(chunks=(2, 3))
    rows, condition = experience(objective, policy)
    for micro_batch, evaluations in ((30, 30), (5, 30), (4, 60)):  # 5 rows a sample
        before = (policy.passes.evaluations, policy.passes.backwards)
        gradient(objective, policy, rows, condition, micro_batch)
        spent = (policy.passes.evaluations - before[0], policy.passes.backwards - before[1])
        assert spent == (evaluations, 30)


def test_each_anchor_costs_one_forward_a_row(linear_policy):
    for objective, evaluations in ((OBJECTIVES[0], 30 * 2), (OBJECTIVES[2], 18 * 3)):
        policy = linear_policy()
        rows, condition = experience(objective, policy)
        before = (policy.passes.evaluations, policy.passes.backwards)
        gradient(objective, policy, rows, condition, micro_batch=7)
        assert policy.passes.evaluations - before[0] == evaluations
        assert policy.passes.backwards - before[1] == len(rows)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_gradients_add_up_and_scale_with_the_share(objective, linear_policy):
    policy = linear_policy()
    rows, condition = experience(objective, policy)
    (once,) = gradient(objective, policy, rows, condition, 8, share=0.01)
    backward(objective, policy, rows, condition, 8, share=0.02)
    assert_close(policy.bias.grad, 3 * once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES[:1] + OBJECTIVES[2:], ids=lambda o: o.kind)
def test_rows_of_weight_zero_add_nothing(objective, linear_policy):
    policy = linear_policy()
    rows, condition = experience(objective, policy)
    counts = rows.sample % 2 == 0
    padded = replace(rows, weight=counts.float())
    assert_close(
        gradient(objective, policy, padded, condition, 8),
        gradient(objective, policy, rows.index(counts), condition, 8),
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_gradient_is_that_of_the_summed_loss(linear_policy):
    # One bias, float64: central differences of the reported loss.
    policy, objective = linear_policy((2,), torch.float64), ClippedRatio(clip_range=0.5, kl_weight=0.1)
    rows, condition = experience(objective, policy)
    columns = {n: c.double() if c.is_floating_point() else c for n, c in vars(rows).items() if c is not None}
    rows = Transitions(**columns)
    (slope,) = gradient(objective, policy, rows, condition, micro_batch=7, share=1.0)

    def loss(offset: float) -> float:
        with torch.no_grad():
            policy.bias[0] += offset
        value = backward(objective, policy, rows, condition, 100, share=1.0).totals["loss"]
        with torch.no_grad():
            policy.bias[0] -= offset
        return value

    assert (loss(1e-5) - loss(-1e-5)) / 2e-5 == pytest.approx(slope[0].item(), rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1000, 7])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_the_report_is_the_same_for_any_split(objective, micro_batch, linear_policy):
    policy = linear_policy()
    rows, condition = experience(objective, policy)
    whole = backward(objective, policy, rows, condition, 1000, 1.0)
    split = backward(objective, policy, rows, condition, micro_batch, 1.0)
    units = {"clipped_ratio": 30, "chunk_ratio": 12, "forward": 18}
    assert whole.units == split.units == units[objective.kind]
    assert split.totals == pytest.approx(whole.totals, rel=1e-4)
    assert split.ratio_deviation == pytest.approx(whole.ratio_deviation, rel=1e-4)


def test_the_ratio_deviation_is_the_largest_gap_to_the_stored_log_prob(linear_policy):
    policy, objective = linear_policy(), ClippedRatio()
    forest = grow(policy, PROMPTS, ROOTS, ROLLOUT, seed=0, iteration=0)
    rows = objective.experience(forest, forest.advantages(ADVANTAGES), seed=0, iteration=0)
    assert backward(objective, policy, rows, forest.condition, 7, 1.0).ratio_deviation == 0
    off = rows.old_log_prob.clone()
    off[[3, 20]] += torch.tensor([0.25, -0.5])
    moved = replace(rows, old_log_prob=off)
    for micro_batch in (7, 1000):
        report = backward(objective, policy, moved, forest.condition, micro_batch, 1.0)
        assert report.ratio_deviation == pytest.approx(0.5, rel=1e-5)


def test_recomputed_log_probs_are_those_of_todays_weights(linear_policy):
    policy, objective = linear_policy(), ClippedRatio()
    rows, condition = experience(objective, policy)
    again = recompute_log_probs(objective, policy, rows, condition, micro_batch=7)
    assert not again.requires_grad and (again - rows.old_log_prob).abs().max() > 1e-4
    report = backward(objective, policy, replace(rows, old_log_prob=again), condition, 7, 1.0)
    assert report.ratio_deviation == 0 and report.totals["clip_fraction"] == 0


def test_no_rows_are_no_work(linear_policy):
    policy = linear_policy()
    rows, condition = experience(OBJECTIVES[1], policy)
    spent = policy.passes.evaluations
    report = backward(OBJECTIVES[1], policy, rows.index(rows.sample < 0), condition, 8, 1.0)
    assert (report.units, report.ratio_deviation, policy.passes.evaluations) == (0, 0.0, spent)
    assert policy.bias.grad is None


def test_metrics_are_means_over_all_units_of_all_updates():
    report, other = Report(), Report()
    report.include(torch.tensor([1.0, 2.0]), {"kl": torch.tensor([0.0, 4.0])})
    other.include(torch.tensor([6.0]), {"kl": torch.tensor([2.0]), "late": torch.tensor([3.0])})
    report.merge(other)
    means = report.means(Processes(), ratio_deviation=0.25)
    assert means == {"loss": 3, "kl": 2, "late": 1, "ratio_deviation": 0.25}
    assert Report().means(Processes(), 0.0) == {"loss": 0, "ratio_deviation": 0}
