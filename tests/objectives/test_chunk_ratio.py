from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.values import Prompt, Transitions
from thalweg.flow import FlowSDE
from thalweg.objectives import ChunkRatio, ClippedRatio
from thalweg.objectives.chunk_ratio import chunks_of, relative_change
from thalweg.rollout import AllSteps, Rollout, Root, Window, grow


def rows_of(
    steps: list[int], samples: list[int], advantages: list[float], old=None, chunks=(1, 2)
) -> Transitions:
    count = len(steps)
    of_step = [chunk for chunk, size in enumerate(chunks) for _ in range(size)]
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
        chunk=torch.tensor([of_step[step] for step in steps]),
    )


THREE_STEPS = ([0, 0, 1, 1, 2, 2], [5, 3] * 3, [2.0, -1.0] * 3)
LOG_PROB = torch.tensor([0.1, -0.2, 0.3, 0.0, -0.1, 0.4], dtype=torch.float64)


def test_a_chunk_has_the_ratio_of_its_mean_log_probs():
    objective = ChunkRatio(chunks=(1, 2), clip_range=0.15)
    terms, report = objective.loss({"log_prob": LOG_PROB}, rows_of(*THREE_STEPS))
    # Sample 3 comes first: chunks -.2 and (0 + .4)/2; then sample 5: .1 and (.3 - .1)/2.
    assert_close(report["log_ratio"], torch.tensor([-0.2, 0.2, 0.1, 0.1], dtype=torch.float64))
    ratio = report["log_ratio"].exp()
    # A = -1: held at .85, then free; A = 2: free at exp(.1) = 1.105.
    assert_close(terms, torch.stack([torch.tensor(0.85).double(), ratio[1], -2 * ratio[2], -2 * ratio[3]]))
    assert report["clip_fraction"].tolist() == [1, 0, 0, 0]


def test_the_order_of_rows_does_not_matter():
    rows, order = rows_of(*THREE_STEPS, chunks=(2, 1)), torch.tensor([3, 0, 5, 1, 4, 2])
    objective = ChunkRatio(chunks=(2, 1), clip_range=0.15)
    terms, _ = objective.loss({"log_prob": LOG_PROB}, rows)
    permuted, _ = objective.loss({"log_prob": LOG_PROB[order]}, rows.index(order))
    assert_close(permuted, terms)


def test_chunks_of_one_step_are_the_clipped_ratio_of_steps():
    rows = rows_of(*THREE_STEPS, old=[0.0, 0.1, 0.0, 0.0, 0.2, 0.3], chunks=(1, 1, 1))
    found = []
    for objective in (ChunkRatio(chunks=(1, 1, 1), clip_range=0.15), ClippedRatio(clip_range=0.15)):
        log_prob = LOG_PROB.clone().requires_grad_()
        terms, _ = objective.loss({"log_prob": log_prob}, rows)
        terms.sum().backward()
        found.append((terms.detach().sort().values, log_prob.grad))
    assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_one_chunk_of_all_steps_is_a_sequence_ratio():
    log_prob = LOG_PROB.clone().requires_grad_()
    rows = rows_of(*THREE_STEPS, chunks=(3,))
    terms, _ = ChunkRatio(chunks=(3,), clip_range=0.5).loss({"log_prob": log_prob}, rows)
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
    assert rows.step.tolist() == [1, 2, 3] and rows.chunk.tolist() == [0, 0, 1]


def test_the_divergence_from_the_old_weights_is_k3_of_the_mean_log_ratio():
    objective = ChunkRatio(chunks=(1, 2), clip_range=0.5, kl_weight=3.0)
    plain, _ = objective.model_copy(update={"kl_weight": 0.0}).loss(
        {"log_prob": LOG_PROB}, rows_of(*THREE_STEPS)
    )
    terms, report = objective.loss({"log_prob": LOG_PROB}, rows_of(*THREE_STEPS))
    # q = -.2, .2, .1, .1 as above; exp(-q) + q - 1 by hand.
    k3 = torch.tensor([0.0214027582, 0.0187307531, 0.0048374180, 0.0048374180], dtype=torch.float64)
    assert_close(report["kl_to_old"], k3, rtol=1e-7, atol=1e-9)
    assert_close(terms - plain, 3 * k3, rtol=1e-7, atol=1e-9)


def drawn_chunks(objective: ChunkRatio, linear_policy, iteration=0, samples=400) -> list[tuple[int, ...]]:
    """The chunks each sample trains on."""
    rollout = Rollout(plan=AllSteps(), group_size=samples, steps=5, kernel=FlowSDE())
    roots = [Root(0, i, i, 0) for i in range(samples)]
    forest = grow(linear_policy(), [Prompt("")], roots, rollout, seed=0, iteration=iteration)
    advantages = forest.advantages(torch.ones(samples, 1))
    rows = objective.experience(forest, advantages, seed=0, iteration=iteration)
    # A chunk is trained whole or not at all.
    sizes = dict.fromkeys(zip(rows.sample.tolist(), rows.chunk.tolist(), strict=True), 0)
    for s, c in zip(rows.sample.tolist(), rows.chunk.tolist(), strict=True):
        sizes[s, c] += 1
    assert all(size == objective.chunks[c] for (_, c), size in sizes.items())
    of_sample: dict[int, tuple[int, ...]] = {}
    for s, c in sorted(sizes):
        of_sample[s] = (*of_sample.get(s, ()), c)
    assert len(of_sample) == samples
    return list(of_sample.values())


def test_every_sample_trains_on_its_own_random_half_of_the_chunks(linear_policy):
    half = ChunkRatio(chunks=(1, 1, 1, 1), chunk_fraction=0.5)
    drawn = drawn_chunks(half, linear_policy)
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    # 400 draws over 6 pairs: 66.7 each, standard deviation 7.5.
    assert all(30 < drawn.count(pair) < 105 for pair in pairs) and sum(map(drawn.count, pairs)) == 400
    assert drawn_chunks(half, linear_policy) == drawn != drawn_chunks(half, linear_policy, iteration=1)


def test_the_odds_of_a_chunk_are_its_share_of_the_weights(linear_policy):
    one = ChunkRatio(chunks=(1, 3), chunk_fraction=0.5, chunk_weights=(3.0, 1.0))
    first = sum(chunks == (0,) for chunks in drawn_chunks(one, linear_policy))
    assert abs(first / 400 - 0.75) < 0.09  # four standard deviations


def test_as_many_odds_as_chunks_are_needed():
    with pytest.raises(ValueError, match="1 odds for 2 chunks; give one each"):
        ChunkRatio(chunks=(1, 2), chunk_weights=(1.0,))


def test_the_relative_change_of_a_step_is_a_mean_over_samples():
    rows = rows_of([0, 1, 0, 1], [0, 0, 1, 1], [1.0] * 4)
    rows = replace(
        rows,
        x=torch.tensor([[1.0, -1.0], [2.0, 2.0], [4.0, 0.0], [1.0, 1.0]]),
        x_next=torch.tensor([[2.0, -1.0], [2.0, 2.0], [3.0, 0.0], [0.0, 0.0]]),
    )
    # Step 0: 1/2 and 1/4; step 1: 0 and 2/2.
    assert relative_change(rows).tolist() == [0.375, 0.5]


def test_chunks_are_cut_where_the_change_turns():
    # Falls over two steps, rises over three, falls again.
    change = torch.tensor([5.0, 3.0, 1.0, 2.0, 4.0, 7.0, 6.0, 2.0])
    assert chunks_of(change) == (2, 3, 3)
    assert chunks_of(torch.tensor([4.0, 3.0, 2.0, 1.0])) == (4,)
    # Falls ever faster up to step 3, then ever slower: the second difference turns there.
    bent = torch.tensor([10.0, 9.0, 7.0, 4.0, 2.0, 1.0, 0.5])
    assert (
        chunks_of(bent) == (7,) and sum(chunks_of(bent, order=2)) == 7 and len(chunks_of(bent, order=2)) == 2
    )
