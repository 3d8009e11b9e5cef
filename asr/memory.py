"""What glibc's malloc does with freed memory, in processes of our own; elsewhere nothing."""

import ctypes
from contextlib import suppress

# Of mallopt(3):
_M_MXFAST = 1  # bytes up to which a freed block is not merged with its neighbours
_M_TRIM_THRESHOLD = -1  # free bytes at the heap's end from which they go back; -1: never
_M_MMAP_MAX = -4  # blocks that come from the system one by one
_M_ARENA_MAX = -8  # heaps


def keep_freed_memory() -> None:
    """Have all threads share one heap that does not shrink.

    Otherwise each tensor of a batch comes from the system as pages to be cleared, and goes back,
    and what one thread has freed no other one can have.
    """
    _set({_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def merge_freed_blocks() -> None:
    """Have a freed block merged with its neighbours at once, however small it is.

    Of the blocks that flashlight frees for each frame it would make lists, and merge those all
    together whenever something large is freed: a tenth of the search's time, or more.
    """
    _set({_M_MXFAST: 0})


def _set(options: dict[int, int]) -> None:
    with suppress(AttributeError, OSError, TypeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)
