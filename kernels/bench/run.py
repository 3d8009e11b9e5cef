"""One benchmark from its rivals to its record."""

from dataclasses import asdict
from typing import Any

import torch

from kernels.bench.machine import machine
from kernels.bench.profile import measure_kernels
from kernels.bench.registry import BENCHMARKS
from kernels.bench.report import Record
from kernels.bench.timing import measure


def run(
    op: str, shape: Any, device: torch.device, repeats: int, seconds: float = float("inf")
) -> Record:
    """Time whatever has a right result; `seconds` are those of one heading.

    Raises:
        AssertionError: the last, with which all are compared, is wrong; then nothing is timed.
    """
    spec = BENCHMARKS[op]
    rivals = spec.build(shape, device)
    if not rivals[-1].passes:
        raise AssertionError(rivals[-1].wrong)
    timings = measure(rivals, device, repeats, seconds) + measure_kernels(rivals, repeats)
    return Record(
        op,
        asdict(shape),
        machine(device),
        timings,
        dict(spec.floor_us) if device.type == "cuda" else {},
        {rival.name: rival.skipped for rival in rivals if rival.skipped},
        {rival.name: rival.wrong for rival in rivals if rival.wrong},
    )
