"""Latency beside its floor: microseconds a step of every cell, ours and the rivals'."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels.bench.report import FOOTNOTE, Record, title

Key = tuple[str, str, int]  # op, heading, H: one panel


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a PNG: a panel for each op, pass and H, cells (T, B) along x, microseconds a step up.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra `train`, is not installed.
        ValueError: no record has times.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(records)
    if not panels:
        raise ValueError("no record with times to draw; run the benchmark first")
    rows = sorted({key[:2] for key in panels})
    columns = sorted({key[2] for key in panels})
    rivals = sorted({timing.rival for r in records for timing in r.timings}, key=_ours_last)
    style = {rival: (f"C{n % 10}", "osv^D*Px"[n // 10 % 8]) for n, rival in enumerate(rivals)}
    figure, axes = pyplot.subplots(
        len(rows),
        len(columns),
        figsize=(1.5 + 4.2 * len(columns), 1.5 + 3 * len(rows)),
        squeeze=False,
        sharey="row",
    )
    for row, (op, heading) in enumerate(rows):
        for column, hidden in enumerate(columns):
            chosen = panels.get((op, heading, hidden), [])
            _panel(axes[row][column], chosen, heading, style)
            axes[row][column].set_title(f"{op}, {heading}, H = {hidden}", fontsize=9)
        axes[row][0].set_ylabel("us a step, median, p10 to p90")
    handles = {label: line for axis in axes.flat for line, label in _labelled(axis)}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(3, 1 + len(columns)),
        fontsize=8,
    )
    footnote = FOOTNOTE if any(record.floor_us for record in records) else ""
    figure.suptitle(f"{title(records[0].machine)}\n{footnote}", fontsize=8, wrap=True)
    figure.set_layout_engine("constrained")
    figure.savefig(path, format="png", dpi=110)
    pyplot.close(figure)


def _panels(records: Sequence[Record]) -> dict[Key, list[Record]]:
    panels: dict[Key, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.shape["frames"], r.shape["batch"])):
        for heading in dict.fromkeys(timing.heading for timing in record.timings):
            panels.setdefault((record.op, heading, record.shape.get("hidden", 0)), []).append(
                record
            )
    return panels


def _panel(
    axis: Any, records: list[Record], heading: str, style: dict[str, tuple[str, str]]
) -> None:
    cells = [f"T{r.shape['frames']}\nB{r.shape['batch']}" for r in records]
    for rival, (color, marker) in style.items():
        points = [
            (n, record.us_per_step(timing), 1000 / record.steps, timing)
            for n, record in enumerate(records)
            for timing in record.timings
            if (timing.rival, timing.heading) == (rival, heading)
        ]
        if not points:
            continue
        middle = [us for _, us, _, _ in points]
        below = [us - scale * timing.p10_ms for _, us, scale, timing in points]
        above = [scale * timing.p90_ms - us for _, us, scale, timing in points]
        axis.errorbar(
            [n for n, *_ in points],
            middle,
            yerr=[below, above],
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.8 if _ours_last(rival)[0] else 0.7,
            label=rival,
        )
    floor = records[0].floor_us.get(heading) if records else None
    if floor is not None:
        axis.axhline(floor, color="black", linestyle="--", linewidth=1, label="floor (a model)")
    axis.set_yscale("log")
    axis.set_xticks(range(len(cells)), cells, fontsize=6)
    axis.grid(axis="y", which="both", alpha=0.3)


def _labelled(axis: Any) -> list[tuple[Any, str]]:
    return list(zip(*axis.get_legend_handles_labels(), strict=True))


def _ours_last(rival: str) -> tuple[bool, str]:
    return rival.startswith("kernels."), rival
