"""Times that can be compared: taken in turns, so that a busy moment hits every rival.

On a GPU by CUDA events. The processor gets a head start before each run, so that what is timed
is the GPU's work and not the launches of it, unless these are slower than the work itself.
"""

import time
from dataclasses import dataclass

import torch

from kernels.bench.registry import Call, Rival

#: Of the GPU's clock, for which it is kept busy while the processor launches: some 5 ms, several
#: times what a forward and backward pass of ours is thought to take to launch.
HEAD_START = 10_000_000

#: Rounds that are taken however long they last.
FEWEST = 3


@dataclass(frozen=True)
class Timing:
    """Times of one pass of one rival, in milliseconds."""

    rival: str
    heading: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    peak_mb: float | None = None  # of GPU memory that one run adds to its inputs, in 2**20 bytes


def measure(
    rivals: list[Rival], device: torch.device, repeats: int, seconds: float = float("inf")
) -> list[Timing]:
    """Each pass of each rival `repeats` times, one of each in turn, after one untimed run.

    Fewer times, but three, where a heading would take more than `seconds`.
    """
    gpu = device.type == "cuda"
    clock = _gpu_milliseconds if gpu else _cpu_milliseconds
    timings = []
    for heading in dict.fromkeys(heading for rival in rivals for heading in rival.passes):
        entrants = [rival for rival in rivals if heading in rival.passes]
        for rival in entrants:
            rival.passes[heading]()
        peaks = [_peak_mb(rival.passes[heading]) if gpu else None for rival in entrants]
        rounds: list[list[float]] = []
        end = time.monotonic() + seconds
        while len(rounds) < repeats and (len(rounds) < FEWEST or time.monotonic() < end):
            rounds.append([clock(rival.passes[heading]) for rival in entrants])
        for n, rival in enumerate(entrants):
            timings.append(summary(rival.name, heading, [times[n] for times in rounds], peaks[n]))
    return timings


def summary(
    rival: str, heading: str, milliseconds: list[float], peak_mb: float | None = None
) -> Timing:
    """Median, first and last tenth of single times."""
    times = torch.tensor(milliseconds, dtype=torch.float64)
    p10, median, p90 = times.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Timing(rival, heading, median, p10, p90, len(milliseconds), peak_mb)


def _cpu_milliseconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _gpu_milliseconds(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _peak_mb(call: Call) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
