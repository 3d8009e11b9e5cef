import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from asr.memory import {change}
{change}()
for _ in range(3):  # for the first one the heap has to grow
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"x" * (40 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(change: str) -> int:
    """Pages that were asked for while 5 times 40 MB were allocated and freed."""
    code = FAULTS.format(change=change)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    """Large blocks come from the system each time otherwise: the other function leaves it so."""
    assert faults("keep_freed_memory") < 100 < faults("merge_freed_blocks")
