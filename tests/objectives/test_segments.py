import torch
from torch.testing import assert_close

from thalweg.objectives.segments import best_and_worst, log_softmax_over, mean_over, segments, sum_over

GROUP = torch.tensor([0, 1, 0, 1, 0])
VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0])
NONE = torch.tensor([], dtype=torch.int64)


def test_rows_that_agree_in_all_columns_share_a_number():
    assert segments(torch.tensor([5, 5, 7, 5]), torch.tensor([1, 2, 1, 1])).tolist() == [0, 1, 2, 0]


def test_sums_means_and_shares_are_those_of_the_rows_segment():
    assert sum_over(VALUES, GROUP).tolist() == [12, 6, 12, 6, 12]
    weight = torch.tensor([1.0, 0.0, 3.0, 0.0, 0.0])
    assert mean_over(VALUES, weight, GROUP).tolist() == [2.5, 0, 2.5, 0, 2.5]
    shares = log_softmax_over(VALUES, GROUP)
    assert_close(shares[GROUP == 0], VALUES[GROUP == 0].log_softmax(0))
    assert_close(shares[GROUP == 1], VALUES[GROUP == 1].log_softmax(0))
    assert log_softmax_over(VALUES * 1e4, GROUP).isfinite().all()


def test_the_best_and_the_worst_sample_are_marked_in_all_their_rows():
    sample = torch.tensor([3, 3, 9, 9, 4, 4, 5, 5])
    group = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    advantage = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.5, 0.5, 1.0, 1.0])
    assert best_and_worst(advantage, sample, group).tolist() == [1, 1, -1, -1, 0, 0, 0, 0]


def test_of_equally_good_samples_the_first_number_counts_in_any_order():
    sample, group = torch.tensor([7, 2, 5, 4]), torch.zeros(4, dtype=torch.int64)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert best_and_worst(advantage, sample, group).tolist() == [0, 1, 0, -1]


def test_no_rows_have_no_segments():
    empty = torch.tensor([])
    assert len(segments(NONE, NONE)) == len(mean_over(empty, empty, NONE)) == 0
    assert len(best_and_worst(empty, NONE, NONE)) == len(log_softmax_over(empty, NONE)) == 0
