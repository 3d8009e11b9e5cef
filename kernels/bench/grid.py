"""Every cell of the targets' grid, the most telling first, each saved before the next begins."""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.bench.registry import Shape
from kernels.bench.report import Record, append
from kernels.bench.run import run

#: In the order of running: what a budget cuts off comes last.
HIDDEN = (512, 320, 1024, 768)
BATCH = (32, 16, 64, 8)
FRAMES = (400, 100, 1600)

#: Of the budget, that a single heading of a cell may take.
SHARE = 1 / 60


@dataclass(frozen=True)
class Grid:
    """Which cells, and how long they may take together."""

    ops: Sequence[str]
    hidden: Sequence[int] = HIDDEN
    batch: Sequence[int] = BATCH
    frames: Sequence[int] = FRAMES
    seconds: float = 300.0
    repeats: int = 10

    def cells(self) -> list[tuple[str, Shape]]:
        """Inputs are 2H wide, as those of all layers of a stack but the first.

        Cells that differ in T follow one another: they share their compiled kernels.
        """
        return [
            (op, Shape(batch=B, frames=T, input=2 * H, hidden=H))
            for B, H, op, T in itertools.product(self.batch, self.hidden, self.ops, self.frames)
        ]


def run_grid(
    grid: Grid,
    device: torch.device,
    path: Path,
    prepare: Callable[[list[tuple[str, Shape]]], object],
) -> int:
    """Append a record a cell to `path`; exit status 1 if a cell failed or has wrong results.

    A cell that fails is named and the next one begins. Cells that the budget, which `prepare` is
    part of, leaves no time for are counted, and no failure.
    """
    end = time.monotonic() + grid.seconds
    cells = grid.cells()
    prepare(cells)
    failed = 0
    for done, (op, shape) in enumerate(cells):
        if time.monotonic() >= end:
            print(f"{grid.seconds:.0f} seconds are over: {len(cells) - done} cells not timed")
            break
        cell = f"{op} H={shape.hidden} B={shape.batch} T={shape.frames}"
        try:
            record = run(op, shape, device, grid.repeats, grid.seconds * SHARE)
        except Exception as error:  # CUDA's, its memory's, the compiler's: they share no class
            print(f"{cell}: not timed: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        append(path, record)
        print("\n".join(summary(cell, record)), flush=True)
        failed += bool(record.wrong)
    return 1 if failed else 0


def summary(cell: str, record: Record) -> list[str]:
    """A line a heading: what ours takes, and how many times that its rivals take."""
    lines = []
    for heading in dict.fromkeys(timing.heading for timing in record.timings):
        ours = record.ours(heading)
        rivals = [
            f"{timing.median_ms / ours.median_ms:.2f} x {timing.rival}"
            for timing in record.timings
            if timing.heading == heading and timing != ours
        ]
        times = f"{ours.median_ms:.2f} ms, {record.us_per_step(ours):.2f} us/step"
        lines.append(f"{cell}, {heading}: {ours.rival} {times}; " + "; ".join(rivals))
    return lines + [
        f"{cell}: wrong, not timed: {name}: {what}" for name, what in record.wrong.items()
    ]
