"""The table for people and the JSON for machines: one record a line, whatever its benchmark."""

import argparse
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernels.bench.machine import Machine
from kernels.bench.timing import Timing

FOOTNOTE = "floor: a model of the hand-over between processors (kernels/README.md), not measured"


@dataclass(frozen=True)
class Record:
    """Everything about one benchmark of one shape."""

    op: str
    shape: dict[str, int]
    machine: Machine
    timings: list[Timing]
    floor_us: dict[str, float]  # heading -> microseconds a step, a model
    skipped: dict[str, str] = field(default_factory=dict)  # rival -> why
    wrong: dict[str, str] = field(default_factory=dict)  # rival -> what; it has no times

    @property
    def steps(self) -> int:
        """Time steps that follow one another."""
        return self.shape["frames"] * self.shape.get("layers", 1)

    def us_per_step(self, timing: Timing) -> float:
        """Median microseconds of one time step of one layer."""
        return 1000 * timing.median_ms / self.steps

    def floor_share(self, timing: Timing) -> float | None:
        """What the floor is of the time taken: 1 is the floor itself."""
        floor = self.floor_us.get(timing.heading)
        return None if floor is None else floor / self.us_per_step(timing)

    def ours(self, heading: str) -> Timing:
        """The last, with which the others are compared."""
        return [timing for timing in self.timings if timing.heading == heading][-1]


def output_file(text: str) -> Path:
    """Type of an argument: a file that can be written when all is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text!r}")
    return path


def save(path: Path, record: Record) -> None:
    """Write one record to `path`, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(_line(record), encoding="utf-8")
    part.replace(path)


def append(path: Path, record: Record) -> None:
    """Add one record to `path`, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def load(path: Path) -> list[Record]:
    """All records of a file of `save` or `append`.

    Raises:
        ValueError: a line is no record.
    """
    return [_record(path, n, line) for n, line in enumerate(path.open(encoding="utf-8"), 1)]


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


def _record(path: Path, number: int, line: str) -> Record:
    try:
        content: dict[str, Any] = json.loads(line)
        content["timings"] = [Timing(**timing) for timing in content["timings"]]
        record = Record(**content)
        _expect_types(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}, line {number}: expected a record of kernels.bench, got {line[:40]!r}; "
            "make one with --json"
        ) from error
    return record


def _expect_types(record: Record) -> None:
    """What a table and a picture are made of; others raise TypeError or AttributeError."""
    timings = record.timings
    names = [record.op, *itertools.chain(*((each.rival, each.heading) for each in timings))]
    times = itertools.chain(*((each.median_ms, each.p10_ms, each.p90_ms) for each in timings))
    sizes = record.shape.values()
    if not (
        {"batch", "frames"} <= record.shape.keys()
        and all(isinstance(size, int) and size >= 1 for size in sizes)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(time, int | float) for time in (*times, *record.floor_us.values()))
        and isinstance(record.machine, dict)
    ):
        raise TypeError("a field holds something else")


def title(machine: Machine) -> str:
    """One line about the machine."""
    return ", ".join(
        str(value) if name == "card" else f"{name} {value}"
        for name, value in machine.items()
        if value is not None and name != "device"
    )


def table(record: Record) -> str:
    """One line a rival and pass; `x ours` is how many times as long as ours, the last, it took."""
    rows: list[tuple[str, ...]] = [
        ("", "", "median", "p10", "p90", "us/step", "of floor", "peak", "x ours")
    ]
    for heading in dict.fromkeys(timing.heading for timing in record.timings):
        ours = record.ours(heading)
        rows += [
            (
                heading,
                timing.rival,
                *(f"{ms:.2f} ms" for ms in (timing.median_ms, timing.p10_ms, timing.p90_ms)),
                f"{record.us_per_step(timing):.2f}",
                _or_blank(record.floor_share(timing), "{:.0%}"),
                _or_blank(timing.peak_mb, "{:.0f} MiB"),
                f"{timing.median_ms / ours.median_ms:.2f}",
            )
            for timing in record.timings
            if timing.heading == heading
        ]
    kept = [n for n, column in enumerate(zip(*rows, strict=True)) if any(column[1:])]
    widths = {n: max(len(row[n]) for row in rows) for n in kept}
    lines = [
        "  ".join(row[n].ljust(widths[n]) if n < 2 else row[n].rjust(widths[n]) for n in kept)
        for row in rows
    ]
    lines += [f"{rival}: not timed: {why}" for rival, why in record.skipped.items()]
    if record.floor_us:
        lines.append(FOOTNOTE)
    return "\n".join(line.rstrip() for line in lines)


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
