from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.values import Prompt, Transitions
from thalweg.flow import FlowSDE
from thalweg.objectives import ChunkRatio, ClippedRatio
from thalweg.rollout import AllSteps, Rollout, Root, Window, grow


def rows_of(steps: list[int], samples: list[int], advantages: list[float], old=None) -> Transitions:
    count = len(steps)
    number, column = torch.zeros(count, dtype=torch.float64), torch.arange(count)
    return Transitions(
        x=number[:, None],
        x_next=number[:, None],
        sigma=number,
        sigma_next=number,
        k=number,
        std=number,
        old_log_prob=number if old is None else torch.tensor(old, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64)[:, None],
        weight=number + 1,
        condition=column,
        prompt_slot=column,
        seed_group=column,
        sample=torch.tensor(samples, dtype=torch.int64),
        step=torch.tensor(steps, dtype=torch.int64),
        depth=column,
        parent=column,
        behaviour_log_prob=number,
    )


THREE_STEPS = ([0, 0, 1, 1, 2, 2], [5, 3] * 3, [2.0, -1.0] * 3)
LOG_PROB = torch.tensor([0.1, -0.2, 0.3, 0.0, -0.1, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("first_step", [0, 4])
def test_a_chunk_has_the_ratio_of_its_mean_log_probs(first_step):
    steps = [step + first_step for step in THREE_STEPS[0]]
    objective = ChunkRatio(chunks=(1, 2), clip_range=0.15)
    terms, report = objective.loss({"log_prob": LOG_PROB}, rows_of(steps, *THREE_STEPS[1:]))
    # Sample 3 comes first: chunks -.2 and (0 + .4)/2; then sample 5: .1 and (.3 - .1)/2.
    assert_close(report["log_ratio"], torch.tensor([-0.2, 0.2, 0.1, 0.1], dtype=torch.float64))
    ratio = report["log_ratio"].exp()
    # A = -1: held at .85, then free; A = 2: free at exp(.1) = 1.105.
    assert_close(terms, torch.stack([torch.tensor(0.85).double(), ratio[1], -2 * ratio[2], -2 * ratio[3]]))
    assert report["clip_fraction"].tolist() == [1, 0, 0, 0]


def test_the_order_of_rows_does_not_matter():
    rows, order = rows_of(*THREE_STEPS), torch.tensor([3, 0, 5, 1, 4, 2])
    objective = ChunkRatio(chunks=(2, 1), clip_range=0.15)
    terms, _ = objective.loss({"log_prob": LOG_PROB}, rows)
    permuted, _ = objective.loss({"log_prob": LOG_PROB[order]}, rows.index(order))
    assert_close(permuted, terms)


def test_chunks_of_one_step_are_the_clipped_ratio_of_steps():
    rows = rows_of(*THREE_STEPS, old=[0.0, 0.1, 0.0, 0.0, 0.2, 0.3])
    found = []
    for objective in (ChunkRatio(chunks=(1, 1, 1), clip_range=0.15), ClippedRatio(clip_range=0.15)):
        log_prob = LOG_PROB.clone().requires_grad_()
        terms, _ = objective.loss({"log_prob": log_prob}, rows)
        terms.sum().backward()
        found.append((terms.detach().sort().values, log_prob.grad))
    assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_one_chunk_of_all_steps_is_a_sequence_ratio():
    log_prob = LOG_PROB.clone().requires_grad_()
    terms, _ = ChunkRatio(chunks=(3,), clip_range=0.5).loss({"log_prob": log_prob}, rows_of(*THREE_STEPS))
    # Means .1 (A = 2) and .2/3 (A = -1); each step gets a third of the slope.
    ratios = torch.tensor([0.2 / 3, 0.1], dtype=torch.float64).exp()
    assert_close(terms, torch.tensor([1.0, -2.0], dtype=torch.float64) * ratios)
    terms.sum().backward()
    slopes = torch.stack([-2 * ratios[1] / 3, ratios[0] / 3]).repeat(3)
    assert_close(log_prob.grad, slopes)


def test_the_first_gradient_is_the_average_of_the_steps_of_each_chunk():
    rows = replace(rows_of(*THREE_STEPS), old_log_prob=LOG_PROB)
    slopes = {}
    for objective in (ChunkRatio(chunks=(1, 2)), ClippedRatio()):
        log_prob = LOG_PROB.clone().requires_grad_()
        objective.loss({"log_prob": log_prob}, rows)[0].sum().backward()
        slopes[objective.kind] = log_prob.grad
    sizes = torch.tensor([1, 1, 2, 2, 2, 2], dtype=torch.float64)
    assert_close(slopes["chunk_ratio"], slopes["clipped_ratio"] / sizes)


def test_a_row_that_only_pads_takes_weight_from_its_chunk():
    rows = rows_of(*THREE_STEPS)
    rows = replace(rows, weight=torch.tensor([1.0, 0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64))
    terms, _ = ChunkRatio(chunks=(1, 2), clip_range=0.5).loss({"log_prob": torch.zeros(6).double()}, rows)
    assert_close(terms, torch.tensor([0.0, 0.0, -2.0, -4.0], dtype=torch.float64))


@pytest.mark.parametrize("chunks", [(2, 3), (1,), (2, 2, 2)])
def test_chunks_that_do_not_add_up_to_the_trained_steps_are_refused(chunks, linear_policy):
    rollout = Rollout(plan=AllSteps(), group_size=2, steps=5, kernel=FlowSDE())
    forest = grow(linear_policy(), [Prompt("")], [Root(0, 0, 0, 0)], rollout, seed=0, iteration=0)
    wrong = rf"adds up to {sum(chunks)} steps, but the rollout trains 4; make them equal"
    with pytest.raises(ValueError, match=wrong):
        ChunkRatio(chunks=chunks).experience(forest, forest.advantages(torch.ones(1, 1)), seed=0, iteration=0)


def test_chunks_fit_the_steps_of_a_window(linear_policy):
    plan = Window(size=3, start=1, move="fixed")
    rollout = Rollout(plan=plan, group_size=2, steps=6, kernel=FlowSDE())
    forest = grow(linear_policy(), [Prompt("")], [Root(0, 0, 0, 0)], rollout, seed=0, iteration=0)
    rows = ChunkRatio(chunks=(2, 1)).experience(
        forest, forest.advantages(torch.ones(1, 1)), seed=0, iteration=0
    )
    assert rows.step.tolist() == [1, 2, 3]
