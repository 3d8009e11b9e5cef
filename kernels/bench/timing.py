"""Times that can be compared: taken in turns, so that a busy moment hits every rival."""

import time
from dataclasses import dataclass

import torch

from kernels.bench.registry import Call, Rival


@dataclass(frozen=True)
class Timing:
    """Times of one pass of one rival, in milliseconds."""

    rival: str
    heading: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


def measure(rivals: list[Rival], device: torch.device, repeats: int) -> list[Timing]:
    """Each pass of each rival `repeats` times, one of each in turn, after one untimed run."""
    timings = []
    headings = dict.fromkeys(heading for rival in rivals for heading in rival.passes)
    for heading in headings:
        entrants = [rival for rival in rivals if heading in rival.passes]
        for rival in entrants:
            rival.passes[heading]()
        rounds = [
            [_milliseconds(rival.passes[heading], device) for rival in entrants]
            for _ in range(repeats)
        ]
        times = torch.tensor(rounds, dtype=torch.float64)  # [repeats, rivals]
        p10, median, p90 = times.quantile(torch.tensor([0.1, 0.5, 0.9]).double(), dim=0).tolist()
        timings += [
            Timing(rival.name, heading, median[n], p10[n], p90[n], repeats)
            for n, rival in enumerate(entrants)
        ]
    return timings


def _milliseconds(call: Call, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return 1000 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
