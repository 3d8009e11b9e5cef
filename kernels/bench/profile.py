"""Single GPU kernels, timed where they run by torch's profiler: a recurrence without its GEMMs."""

from collections.abc import Iterable

import torch

from kernels.bench.registry import Call, Rival
from kernels.bench.timing import Timing, summary


def measure_kernels(rivals: list[Rival], repeats: int) -> list[Timing]:
    """Times of every kernel that a rival names; none for a kernel that was not launched."""
    timings = []
    for rival in rivals:
        for heading, (inside, kernel) in rival.kernels.items():
            if inside not in rival.passes:
                continue
            times = _per_run(_microseconds(rival.passes[inside], kernel, repeats), repeats)
            if times:
                timings.append(summary(rival.name, heading, [us / 1000 for us in times]))
    return timings


def _microseconds(call: Call, kernel: str, repeats: int) -> list[float]:
    """Of each launch of `kernel` in `repeats` runs, in the order of launching."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    found = [event for event in profile.events() or () if event.name.startswith(kernel)]
    found.sort(key=lambda event: event.time_range.start)
    return [event.time_range.elapsed_us() for event in found]


def _per_run(microseconds: Iterable[float], repeats: int) -> list[float]:
    """Sums over the launches of each run; nothing if launches were lost."""
    launches = list(microseconds)
    each, lost = divmod(len(launches), repeats)
    if lost or not each:
        return []
    return [sum(launches[n * each : (n + 1) * each]) for n in range(repeats)]
