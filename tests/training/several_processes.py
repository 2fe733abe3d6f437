"""Several processes of one test, which find each other as those that torchrun starts do."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable


def on_processes(count: int, work: Callable[[], object], timeout: float = 100.0) -> None:
    """Do the work on all of them; fails where one fails, or where they wait for each other for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> None:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), **address)
        work()

    # A fork needs no second import of torch.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    assert not hanging, f"{len(hanging)} of {count} processes still waited after {timeout:.0f} s"
    assert [process.exitcode for process in processes] == [0] * count
