import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes
from thalweg.core.values import Samples, Transitions
from thalweg.credit import Selection
from thalweg.credit.step_weight import step_weights


def transitions_of(advantages, samples, steps, std=None) -> Transitions:
    count = len(samples)
    one, column = torch.ones(count), torch.tensor(samples)
    return Transitions(
        x=torch.zeros(count, 1),
        x_next=torch.zeros(count, 1),
        sigma=one,
        sigma_next=one,
        k=one,
        std=torch.tensor(std or [1.0] * count),
        old_log_prob=one,
        advantages=torch.tensor(advantages),
        weight=one,
        condition=column,
        prompt_slot=column,
        seed_group=column,
        sample=column,
        step=torch.tensor(steps),
        depth=column,
        parent=column,
        behaviour_log_prob=one,
    )


def chains(num_samples: int, num_steps: int) -> Transitions:
    """Rows in the order of a forest: all samples of step 0, then all of step 1, ..."""
    samples = [100 + s for _ in range(num_steps) for s in range(num_samples)]
    steps = [j for j in range(num_steps) for _ in range(num_samples)]
    return transitions_of([[1.0]] * len(samples), samples, steps)


def select(selection: Selection, rows, seed=0, iteration=0):
    return selection.select(rows, seed=seed, iteration=iteration)


def test_samples_without_any_advantage_are_not_trained_on():
    rows = transitions_of([[0.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, 0.0]], [0, 1, 2, 3], [0, 0, 0, 0])
    assert select(Selection(), rows).sample.tolist() == [1, 2]
    assert select(Selection(drop_zero=False), rows).sample.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fraction", "num_steps", "kept"),
    # int(0.6 · 15) = 9 as in DanceGRPO with 16 steps; never less than one.
    [(0.6, 15, 9), (0.6, 7, 4), (0.5, 7, 3), (0.1, 7, 1), (1.0, 7, 7)],
)
def test_a_fraction_of_each_samples_steps_is_trained(fraction, num_steps, kept):
    rows = select(Selection(trained_fraction=fraction), chains(20, num_steps))
    assert len(rows) == 20 * kept
    for sample in range(100, 120):
        own = rows.step[rows.sample == sample].tolist()
        assert len(set(own)) == kept


def test_every_sample_draws_steps_of_its_own_anew_each_iteration():
    credit, rows = Selection(trained_fraction=0.5), chains(200, 8)

    def steps_of(iteration, table=rows):
        chosen = select(credit, table, iteration=iteration)
        return {s: tuple(chosen.step[chosen.sample == s].tolist()) for s in set(chosen.sample.tolist())}

    first, again, later = steps_of(0), steps_of(0), steps_of(1)
    assert first == again
    assert len(set(first.values())) > 30  # of 70 possible choices of 4 out of 8
    assert sum(first[s] != later[s] for s in first) > 150
    for step in range(8):  # each in half of the samples, standard error 7
        assert abs(sum(step in steps for steps in first.values()) - 100) < 30
    # A sample's choice is its own: what else is there does not matter.
    half = rows.index(rows.sample < 150)
    assert steps_of(0, half) == {s: first[s] for s in range(100, 150)}


def test_samples_of_one_step_keep_it_whatever_the_fraction():
    rows = transitions_of([[1.0]] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 2, 2, 5, 5])
    assert select(Selection(trained_fraction=0.3), rows).sample.tolist() == [0, 1, 2, 3, 4, 5]


def test_dropping_and_drawing_both_take_away():
    rows = chains(4, 5)
    flat = torch.where(rows.sample[:, None] < 102, 0.0, rows.advantages)
    chosen = select(
        Selection(trained_fraction=0.4),
        transitions_of(flat.tolist(), rows.sample.tolist(), rows.step.tolist()),
    )
    assert sorted(chosen.sample.tolist()) == [102, 102, 103, 103]


def test_the_noise_weight_of_a_step_is_its_std_over_the_mean_of_all_trained_steps():
    # Steps 2, 3 and 5 with s = .1, .3 and .8, mean .4, however many samples each has.
    step = torch.tensor([2, 2, 2, 3, 5, 5])
    std = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.8, 0.8])
    rows = transitions_of([[1.0]] * 6, [0, 1, 2, 0, 0, 1], step.tolist(), std.tolist())
    got = step_weights("noise", rows, Processes())
    assert_close(got, torch.tensor([0.25, 0.25, 0.25, 0.75, 2.0, 2.0]))
    assert step_weights("uniform", rows, Processes()).tolist() == [1] * 6


def test_one_trained_step_has_noise_weight_one():
    rows = transitions_of([[1.0]] * 4, [0, 1, 2, 3], [3] * 4, [0.37] * 4)
    assert_close(step_weights("noise", rows, Processes()), torch.ones(4))


def test_no_rows_have_no_weights():
    rows = transitions_of([[1.0]], [0], [0]).index(torch.tensor([], dtype=torch.int64))
    assert len(step_weights("noise", rows, Processes())) == 0


def test_step_weights_do_not_depend_on_which_samples_are_dropped():
    credit = Selection(step_weight="noise")
    samples, steps, std = [0, 1, 0, 1], [0, 0, 1, 1], [0.2, 0.2, 0.6, 0.6]
    both = select(credit, transitions_of([[1.0]] * 4, samples, steps, std))
    assert_close(both.weight, torch.tensor([0.5, 0.5, 1.5, 1.5]))
    # On one process no sample of step 0 may be left; its step 1 still counts as on the others.
    rest = select(credit, transitions_of([[0.0], [0.0], [1.0], [0.0]], samples, steps, std))
    assert_close(rest.weight, torch.tensor([1.5]))


def test_weights_that_rows_have_already_stay():
    rows = transitions_of([[1.0]] * 2, [0, 0], [0, 1], [0.2, 0.6])
    rows = Transitions(**{**vars(rows), "weight": torch.tensor([0.0, 2.0])})
    assert_close(select(Selection(step_weight="noise"), rows).weight, torch.tensor([0.0, 3.0]))
    assert_close(select(Selection(), rows).weight, torch.tensor([0.0, 2.0]))


def test_samples_of_a_forward_objective_are_dropped_and_drawn_alike():
    column = torch.tensor([7, 7, 7, 8, 8, 8])
    rows = Samples(
        x0=torch.zeros(6, 1),
        sigma=torch.ones(6),
        noise=torch.zeros(6, 1),
        advantages=torch.tensor([[1.0]] * 3 + [[0.0]] * 3),
        weight=torch.ones(6),
        condition=column,
        prompt_slot=column,
        seed_group=column,
        sample=column,
        step=torch.tensor([0, 1, 2, 0, 1, 2]),
    )
    assert select(Selection(), rows).sample.tolist() == [7, 7, 7]
    assert select(Selection(trained_fraction=0.7, drop_zero=False), rows).sample.tolist() == [7, 7, 8, 8]
