"""Pools of threads, each of which computes on its own share of the cores."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, current_thread

import torch

_OURS = "asr-"  # what the names of this package's threads begin with


def is_ours() -> bool:
    """Whether this is a thread of this package's, which must not wait for what it does itself.

    A generator that nobody holds any more ends in whichever thread collects garbage next.
    """
    return current_thread().name.startswith(_OURS)


def pool_with_cores(count: int, name: str, cores: int = 1) -> ThreadPoolExecutor:
    """A pool of threads for which torch computes on one core, or on `cores` of them.

    Threads that share torch's own would wait for each other at the end of every operator. A number
    that is set in a thread holds there, but also in those that torch has yet to see, which may be
    anybody's: so all of the pool start here, and then the caller's number is set again.
    """
    inherited = torch.get_num_threads()
    started = Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # torch gives a thread the inherited number when it first asks
        torch.set_num_threads(cores)
        started.wait()

    pool = ThreadPoolExecutor(count, name)
    try:
        for _ in range(count):
            pool.submit(begin)
        started.wait()
    except BaseException:  # Ctrl-C, or there can be no more threads
        started.abort()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(inherited)
    return pool
