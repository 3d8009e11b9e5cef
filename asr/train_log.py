"""What a training shows and leaves behind: progress, log.jsonl, TensorBoard, loss.png."""

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asr.checkpoint import EpochScore
from asr.files import replacing, write_text

_LINE_SECONDS = 60.0  # between progress lines where there is no terminal


class TrainingLog:
    """A live line on a terminal, a plain line a minute elsewhere, and records in files.

    A quiet one does nothing: of several processes one tells.
    """

    def __init__(self, out: Path, metric: str, *, quiet: bool = False) -> None:
        self.out = out
        self.metric = metric
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self._records = out / "log.jsonl"
        self._writer: Any = None
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1, epoch="", status="")
        self._said = time.monotonic()

    def __enter__(self) -> "TrainingLog":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def rewind(self, step: int, epoch: int) -> None:
        """Keep the records of `step` steps and `epoch` epochs: others are to come once more."""
        if self.quiet:
            return
        if self._records.exists():
            kept = []
            lines = self._records.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                with suppress(ValueError, TypeError, AttributeError):  # half a line, or no record
                    record = json.loads(line)
                    if record.get("step", 0) <= step and record.get("epoch", -1) < epoch:
                        kept.append(line + "\n")
            write_text(self._records, "".join(kept))
        self._writer = _tensorboard(self.out / "tensorboard", step)

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, markup=False, soft_wrap=True)

    def record(self, **values: float | int | str) -> None:
        """Append a record to log.jsonl, its numbers also to TensorBoard."""
        if self.quiet:
            return
        with self._records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._writer is not None and "step" in values:
            for name, value in values.items():
                if name != "step" and not isinstance(value, str):
                    self._writer.add_scalar(name, value, values["step"])

    def step(self, epoch: int, batch: int, batches: int, status: str) -> None:
        """Show where the epoch stands."""
        self._progress.update(
            self._task, completed=batch, total=batches, epoch=epoch, status=status
        )
        if not self.console.is_terminal and time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"epoch {epoch} {batch}/{batches} {status}")

    def plot(self, history: list[EpochScore]) -> None:
        """Draw the curves of the epochs so far into loss.png."""
        if self.quiet:
            return
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError:
            return
        epochs = [score.epoch for score in history]
        figure = Figure(figsize=(7, 4), layout="constrained")
        loss = figure.add_subplot()
        # With points, so that the first epoch alone is seen.
        heard = [score.train_loss for score in history]
        loss.plot(epochs, heard, "C0.--", label="training loss")
        loss.plot(epochs, [score.valid_loss for score in history], "C0.-", label="validation loss")
        loss.set(xlabel="epoch", ylabel="loss per unit", ylim=(min(0, *heard), None))
        loss.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        rate = loss.twinx()
        percent = [100 * score.error_rate for score in history]
        rate.plot(epochs, percent, "C1.-", label=f"validation {self.metric}")
        rate.set(ylabel=f"{self.metric} (%)", ylim=(0, 1.05 * max(100, *percent)))
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        with replacing(self.out / "loss.png") as partial:
            figure.savefig(partial, format="png", dpi=120)


def _tensorboard(folder: Path, step: int) -> Any:
    """A TensorBoard writer after `step` steps, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1)
