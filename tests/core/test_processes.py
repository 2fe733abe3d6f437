import time

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes, connect, disconnect
from training.several_processes import on_processes


@pytest.mark.parametrize(("total", "count"), [(12, 1), (12, 4), (7, 3), (2, 5)])
def test_shares_follow_each_other_and_cover_everything_once(total, count):
    shares = [Processes(rank, count).share(total) for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_keeps_its_rows_and_sums():
    alone = Processes()
    assert alone.gather({"reward": torch.tensor([1.0, 2.0])})["reward"].tolist() == [1, 2]
    gradient = torch.tensor([3.0])
    alone.add([gradient])
    assert_close(gradient, torch.tensor([3.0]))
    assert alone.any(True) and not alone.any(False)


def test_only_rank_zero_is_first():
    assert [Processes(rank, 3).is_first for rank in range(3)] == [True, False, False]


def test_processes_meet_again_after_one_has_left_early():
    def work():
        for number in range(5):
            processes = connect()
            assert processes.texts(f"{number}{processes.rank}") == [f"{number}0", f"{number}1"]
            if processes.is_first:
                time.sleep(0.1)  # still at the old place when the other comes back
            disconnect(processes)

    on_processes(2, work, timeout=30)
