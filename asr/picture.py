"""A picture of what the network heard, with the path of a text drawn on it."""

from itertools import pairwise
from pathlib import Path

from asr.align import Aligned
from asr.errors import ConfigError
from asr.files import replacing

_INCHES_A_SECOND = 1.5
_WIDTHS = (8.0, 60.0)  # inches; a longer recording is drawn narrower


def check_picture(path: Path) -> None:
    """Refuse what `draw` could not write, before the work is done.

    Raises:
        ConfigError: the file's name does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--picture: expected a file NAME.png, got {path}")


def draw(aligned: Aligned, units: tuple[str, ...], path: Path) -> None:
    """Write a PNG: time to the right, a row for each unit of the path, darker where likelier.

    Args:
        aligned: what to draw.
        units: names of the network's units.
        path: the file.

    Raises:
        ConfigError: matplotlib is not installed, or the file's name is not that of a PNG.
    """
    check_picture(path)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "--picture: expected matplotlib, which is not installed; pip install 'blstm-asr[train]'"
        ) from None
    shown = aligned.path.unique()  # ascending: the blank is the lowest row
    rows = [int((shown == unit).nonzero()) for unit in aligned.path]
    least, most = _WIDTHS
    width = min(most, max(least, _INCHES_A_SECOND * aligned.duration))
    figure = Figure(figsize=(width, 1.5 + 0.16 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    times = aligned.times.tolist()
    edges = [*times, aligned.duration]
    axes.pcolormesh(
        edges,
        range(len(shown) + 1),
        aligned.log_probs[:, shown].exp().T.numpy(),
        cmap="Greys",
        vmin=0,
        vmax=1,
    )
    centres = [(one + two) / 2 for one, two in pairwise(edges)]
    axes.plot(centres, [row + 0.5 for row in rows], "C1-", linewidth=1, drawstyle="steps-mid")
    axes.set_yticks([row + 0.5 for row in range(len(shown))], [units[unit] for unit in shown])
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="seconds", xlim=(0, aligned.duration), ylim=(0, len(shown)))
    for word in aligned.words:
        axes.axvspan(word.start, word.end, color="C0", alpha=0.12, linewidth=0)
        axes.text(word.start, len(shown) + 0.3, word.text, fontsize=7, rotation=60)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
