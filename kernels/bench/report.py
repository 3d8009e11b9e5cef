"""The table for people and the JSON for machines."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from kernels.bench.registry import Shape
from kernels.bench.timing import Timing


def machine(device: torch.device) -> str:
    """What the times were taken on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}"
    )


def table(timings: list[Timing]) -> str:
    """One line a rival and pass; `x ours` is how many times as long as ours, the last, it took."""
    rows: list[tuple[str, ...]] = [("", "", "median", "p10", "p90", "x ours")]
    for heading in dict.fromkeys(timing.heading for timing in timings):
        group = [timing for timing in timings if timing.heading == heading]
        ours = group[-1].median_ms
        rows += [
            (
                timing.heading,
                timing.rival,
                *(f"{ms:.1f} ms" for ms in (timing.median_ms, timing.p10_ms, timing.p90_ms)),
                f"{timing.median_ms / ours:.2f}",
            )
            for timing in group
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def save(path: Path, op: str, shape: Shape, device: torch.device, timings: list[Timing]) -> None:
    """Write everything to `path`, whole or not at all."""
    content = {
        "op": op,
        "shape": asdict(shape),
        "device": device.type,
        "machine": machine(device),
        "timings": [asdict(timing) for timing in timings],
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
