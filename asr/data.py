"""Manifests, batches of like duration, and their loading in background threads.

Batches are planned by a pure function of (durations, seed, epoch). lhotse's samplers keep their
place in their own state; a plan has no state, so a training killed anywhere resumes at batch k
of epoch e by planning the epoch again.
"""

import math
import random
import zlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.audio import read_audio
from asr.augment import augment_waveform
from asr.config import AugmentConfig
from asr.errors import AudioError, DataError
from asr.table import read_table
from asr.text import foreign_letters, normalize
from asr.threads import pool_with_cores

_CUTS = {".jsonl", ".json", ".yaml", ".yml"}  # then perhaps .gz
# What lhotse raises on fields that are missing or of other types.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, AssertionError)
_NO_CUTS = (OSError, EOFError, zlib.error, *_MALFORMED)  # the two of truncated files
_ROUNDING = 0.001  # seconds that a cut's duration and its recording's may differ
_CHANGED = 0.2  # seconds by which no container is wrong about its recording


@dataclass(frozen=True)
class Utterance:
    """One recording with its transcript."""

    id: str
    audio: str  # path
    seconds: float
    text: str  # normalised transcript
    speaker: str


def read_manifest(path: Path) -> list[Utterance]:
    """Utterances of a lhotse cut manifest, or of a TSV with `path` and `transcript` columns.

    Raises:
        DataError: the file is missing, is neither, or holds no utterance, or a transcript has
            letters that are none of A-Z even without their accents.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such manifest; make one with `asr prepare`")
    utterances = _read_tsv(path) if path.suffix.lower() == ".tsv" else _read_cuts(path)
    if not utterances:
        raise DataError(f"{path}: holds no utterance")
    return utterances


def _read_cuts(path: Path) -> list[Utterance]:
    from lhotse import CutSet
    from lhotse.cut.data import DataCut

    if not _CUTS & set(path.suffixes):
        raise DataError(
            f"{path}: expected NAME.tsv, or a lhotse cut manifest such as NAME.jsonl.gz"
        )
    try:
        cuts = list(CutSet.from_file(path) or ())  # None: a file without a line
    except _NO_CUTS as error:
        raise DataError(f"{path}: neither NAME.tsv nor a lhotse cut manifest: {error}") from None
    utterances = []
    for cut in cuts:
        # A DataCut is neither padded nor mixed.
        if not (isinstance(cut, DataCut) and len(cut.supervisions) == 1 and _is_whole(cut)):
            raise DataError(
                f"{path}: cut {cut.id} must be one whole recording, all channels of one file, "
                "with one transcript"
            )
        supervision = cut.supervisions[0]
        if not isinstance(supervision.text, str | None):
            raise DataError(
                f"{path}: cut {cut.id}: expected a transcript as text, got {supervision.text!r}"
            )
        utterances.append(
            Utterance(
                cut.id,
                str(cut.recording.sources[0].source),
                cut.duration,
                _transcript(supervision.text or "", f"{path}: cut {cut.id}"),
                supervision.speaker or "",
            )
        )
    return utterances


def _is_whole(cut: Any) -> bool:
    """Whether a cut is all of a recording, which is one file."""
    try:
        return (
            [source.type for source in cut.recording.sources] == ["file"]
            and cut.num_channels == cut.recording.num_channels
            and cut.start == 0
            and math.isclose(cut.duration, cut.recording.duration, abs_tol=_ROUNDING)
        )
    except _MALFORMED:  # lhotse has not looked at all fields
        return False


def _transcript(text: str, place: str) -> str:
    if letters := foreign_letters(text):
        raise DataError(
            f"{place}: expected a transcript in letters of A-Z, got {letters} as well; write them "
            "in those, or leave the utterance out"
        )
    return normalize(text)


def _read_tsv(path: Path) -> list[Utterance]:
    utterances = []
    for row in read_table(path):
        if row.fault:
            raise DataError(f"{path}:{row.line}: {row.fault}")
        cells = row.cells
        try:
            seconds = float(cells.get("seconds") or 0.0)
        except ValueError:
            raise DataError(
                f"{path}:{row.line}: expected seconds as a number, got {cells['seconds']!r}"
            ) from None
        audio = str(path.parent / cells["path"])
        text = _transcript(cells["transcript"], f"{path}:{row.line}")
        speaker = cells.get("speaker", "")
        utterances.append(Utterance(cells["path"], audio, seconds, text, speaker))
    return utterances


@dataclass(frozen=True)
class Batch:
    """Waveforms with their targets."""

    ids: tuple[str, ...]
    waveforms: Tensor  # [B, N] float32
    lengths: Tensor  # [B] int64, samples
    targets: Tensor  # [sum of target_lengths] int64
    target_lengths: Tensor  # [B] int64


@dataclass(frozen=True)
class Entry:
    """An utterance's place in a plan."""

    index: int
    speed: float


def _seed(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


def plan_batches(
    seconds: Sequence[float],
    speeds: Sequence[float],
    max_seconds: float,
    max_utterances: int,
    seed: int,
    epoch: int,
) -> list[list[Entry]]:
    """Every utterance once, in batches of like duration, in random order.

    `max_seconds` caps a batch with its padding; an utterance longer than it stands alone.
    """
    rng = random.Random(_seed(seed, epoch, "plan"))
    entries = [Entry(index, rng.choice(speeds)) for index in range(len(seconds))]
    # A little noise in the order, so that batches differ between epochs.
    duration = {entry.index: seconds[entry.index] / entry.speed for entry in entries}
    entries.sort(key=lambda entry: duration[entry.index] * rng.uniform(0.95, 1.05))
    batches: list[list[Entry]] = []
    longest = 0.0
    for entry in entries:
        longest = max(longest, duration[entry.index])
        full = batches and (
            len(batches[-1]) == max_utterances or longest * (len(batches[-1]) + 1) > max_seconds
        )
        if not batches or full:
            batches.append([])
            longest = duration[entry.index]
        batches[-1].append(entry)
    rng.shuffle(batches)
    return batches


class Loader:
    """Reads and augments planned batches in threads, ahead of their use.

    Decoding and resampling release the interpreter's lock, so that threads are enough and a
    batch is never pickled.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        targets: Sequence[Sequence[int]],
        sample_rate: int,  # Hz, that all audio is brought to
        workers: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        pin: bool = False,  # waveforms in memory that a GPU copies at full speed
    ) -> None:
        self.utterances = utterances
        self.targets = targets
        self.sample_rate = sample_rate
        self.augment = augment
        self.seed = seed
        self.pin = pin
        self.workers = workers

    def load(self, entries: Sequence[Entry], epoch: int = 0) -> Batch:
        """One batch.

        Raises:
            AudioError: a file of the batch cannot be read, or is not as long as it was.
        """
        waveforms = [self._waveform(entry, epoch) for entry in entries]
        padded = pad_sequence(waveforms, batch_first=True)
        targets = [self.targets[entry.index] for entry in entries]
        return Batch(
            tuple(self.utterances[entry.index].id for entry in entries),
            padded.pin_memory() if self.pin else padded,
            torch.tensor([len(waveform) for waveform in waveforms]),
            torch.tensor([unit for target in targets for unit in target], dtype=torch.int64),
            torch.tensor([len(target) for target in targets]),
        )

    def _waveform(self, entry: Entry, epoch: int) -> Tensor:
        utterance = self.utterances[entry.index]
        waveform = read_audio(utterance.audio, self.sample_rate)
        seconds = len(waveform) / self.sample_rate
        if abs(seconds - utterance.seconds) > _CHANGED:
            raise AudioError(
                f"{utterance.audio}: is {seconds:.2f} s long, expected {utterance.seconds:.2f} s "
                "as in the manifest; run `asr prepare` again"
            )
        if self.augment is None:
            return waveform
        generator = torch.Generator().manual_seed(_seed(self.seed, epoch, utterance.id))
        return augment_waveform(waveform, entry.speed, self.augment, generator)

    def batches(
        self, plan: Sequence[Sequence[Entry]], epoch: int = 0
    ) -> Generator[Batch, None, None]:
        """The planned batches in order; two more than `workers` are loaded, or being so, ahead.

        Raises:
            AudioError: as `load`, in the turn of the batch.
        """
        pool = pool_with_cores(self.workers, "load")  # resampling would start more in every one
        pending: deque[Future[Batch]] = deque()
        try:
            for entries in plan:
                pending.append(pool.submit(self.load, entries, epoch))
                if len(pending) > self.workers + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
