"""Recordings -> transcripts with the time and confidence of each word.

Three stages work at the same time: threads read and cut files, others run the network on
segments of like length, of whichever files they are, and further ones search for the words, or
have processes do it (`asr.workers`). Memory is bounded: by the segments of two pools and the
batches under way, not by the number or length of files. Of files in a row that are silent or
cannot be read, the names are held until one speaks.
"""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.audio import check_level, read_blocks
from asr.decode import Decoder
from asr.errors import AudioError
from asr.model_dir import Packaged
from asr.segment import Segment, segments
from asr.threads import is_ours
from asr.word_search import Hypothesis
from asr.workers import Workers

_READERS = 4  # files read at the same time
_READ_AHEAD = 16  # segments of a file that are read at once
_POOL_BATCHES = 4  # whose segments are sorted by length: 31 MB on a CPU
_FIRST_SECONDS = 60.0  # of audio in the first pool, so that the search need not wait for long
_CPU_SECONDS = 120.0  # padded audio in a batch
_GPU_SECONDS = 600.0

_Source = tuple[str, Iterator[Tensor]]  # name, blocks of samples [n]


@dataclass(frozen=True)
class Word:
    """A recognised word.

    `confidence`, in [0, 1], is how likely the word is right, as far as the development speech of
    `asr tune-lm` tells; see asr/confidence.py. Of a greedy path, and of a model that was never
    tuned, it is the mean posterior of the word's units: how clearly they were heard.
    """

    text: str
    start: float  # seconds from the recording's beginning
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording."""

    file: str
    text: str  # the words, joined by spaces
    duration: float  # seconds
    words: tuple[Word, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON; times to the millisecond."""
        words = [
            {key: value if key == "text" else round(value, 3) for key, value in word.items()}
            for word in map(asdict, self.words)
        ]
        return {
            "file": self.file,
            "text": self.text,
            "duration": round(self.duration, 3),
            "words": words,
        }


@dataclass
class _File:
    """A recording on its way through the stages; only the thread that asked for it writes."""

    name: str
    words: dict[int, list[Word]] = field(default_factory=dict)  # by their segment's start
    samples: int = 0
    pieces: int = 0  # segments whose words are known or will be
    read: bool = False  # to its end
    error: AudioError | None = None

    @property
    def finished(self) -> bool:
        return self.read and (self.error is not None or len(self.words) == self.pieces)


class _Chunk(NamedTuple):
    """Segments of a file that were read at once."""

    file: _File
    segments: list[Segment]
    last: bool
    error: AudioError | None


class _Piece(NamedTuple):
    file: _File
    segment: Segment


class Recognizer:
    """A model and a search, ready to transcribe.

    Args:
        packaged: the model, on its device.
        decoder: what turns the network's output into words; called from two threads.
        batch_seconds: padded audio in a batch; None: by device. On a CPU up to four batches are
            in the network at a time.
    """

    def __init__(
        self, packaged: Packaged, decoder: Decoder, *, batch_seconds: float | None = None
    ) -> None:
        self.packaged = packaged
        self.decoder = decoder
        self.sample_rate = packaged.config.features.sample_rate  # Hz
        on_cpu = packaged.device == "cpu"
        self.batch_seconds = batch_seconds or (_CPU_SECONDS if on_cpu else _GPU_SECONDS)

    def transcribe(self, path: str | Path) -> Transcript:
        """Transcribe one file of any length.

        Raises:
            AudioError: the file cannot be read.
            ValueError: not a path.
        """
        (result,) = self.transcribe_many([path])
        if isinstance(result, AudioError):
            try:
                raise result
            finally:
                del result  # it would hold this frame, and the frame the recogniser
        return result

    def transcribe_many(self, paths: Iterable[str | Path]) -> Iterator[Transcript | AudioError]:
        """Transcribe files, much faster than one by one.

        Args:
            paths: taken in a thread of its own, well before their transcripts; while the next one
                is awaited, finished transcripts may be too.

        Yields:
            For each path, in order, its transcript, or the error that says why there is none.

        Raises:
            ValueError: one path, not several; or something that is no path.
        """
        if isinstance(paths, str | Path):
            raise ValueError(f"transcribe_many: expected paths, got {paths!r} alone; put it in []")
        return self._run((_name(path), read_blocks(path, self.sample_rate)) for path in paths)

    def transcribe_waveform(self, waveform: Tensor | NDArray[Any]) -> Transcript:
        """Transcribe `[N]` samples at `self.sample_rate`, full scale 1; `file` is empty.

        Raises:
            AudioError: not one channel of finite floating-point samples, or a larger scale.
        """
        if isinstance(waveform, np.ndarray) and waveform.dtype.kind == "f":
            waveform = torch.from_numpy(waveform.astype(np.float32))  # of any strides, byte order
        if not (
            isinstance(waveform, Tensor) and waveform.dim() == 1 and waveform.is_floating_point()
        ):
            known = isinstance(waveform, Tensor | np.ndarray)
            got = f"{list(waveform.shape)} {waveform.dtype}" if known else type(waveform).__name__
            raise AudioError(
                f"transcribe_waveform: expected samples [N] in floating point, got {got}; mix "
                "channels and scale to [-1, 1]"
            )
        check_level("transcribe_waveform", waveform)
        (result,) = self._run([("", iter([waveform.float().cpu()]))])
        assert isinstance(result, Transcript)
        return result

    def _run(self, sources: Iterable[_Source]) -> Iterator[Transcript | AudioError]:
        files: deque[_File] = deque()  # not yet handed out, in order
        workers = Workers.of_this_process()
        batches = self._batches(sources, files, workers.at_once(self.packaged))
        searched = workers.run(
            self.packaged, batches, lambda piece: piece.segment.waveform, self._search
        )
        with closing(batches), closing(searched):
            for batch, found in searched:
                for piece, words in zip(batch, found, strict=True):
                    piece.file.words[piece.segment.start] = words
                yield from self._finished(files)
        yield from self._finished(files)

    def _batches(
        self, sources: Iterable[_Source], files: deque[_File], at_once: int
    ) -> Generator[list[_Piece], None, None]:
        """Pieces of like length, while the next pool is read; files that begin go into `files`.

        A small pool is cut into as many batches as the network takes `at_once`.
        """
        readers = ThreadPoolExecutor(_READERS, "asr-read")
        pooler = ThreadPoolExecutor(1, "asr-pool")
        pools = self._pools(sources, readers)
        pooling = pooler.submit(next, pools, None)
        try:
            while pool := pooling.result():
                pooling = pooler.submit(next, pools, None)
                pieces = self._pieces(pool, files)
                samples = sum(len(piece.segment.waveform) for piece in pieces)
                most = min(self.batch_seconds * self.sample_rate, samples / at_once)
                yield from _of_like_length(pieces, most)
        finally:
            for executor in (pooler, readers):
                executor.shutdown(wait=not is_ours(), cancel_futures=True)
            del pooling  # an error in it would hold this frame, and the frame the recogniser

    def _pools(
        self, sources: Iterable[_Source], readers: ThreadPoolExecutor
    ) -> Iterator[list[_Chunk]]:
        """Chunks worth `_POOL_BATCHES` at a time, less at first: nobody should wait for long."""
        pool: list[_Chunk] = []
        samples = 0
        wanted = min(_FIRST_SECONDS, self.batch_seconds)
        for chunk in self._read(sources, readers):
            pool.append(chunk)
            samples += sum(len(segment.waveform) for segment in chunk.segments)
            if samples >= wanted * self.sample_rate:
                yield pool
                pool, samples, wanted = [], 0, min(2 * wanted, _POOL_BATCHES * self.batch_seconds)
        if pool:
            yield pool

    def _read(self, sources: Iterable[_Source], readers: ThreadPoolExecutor) -> Iterator[_Chunk]:
        """Chunks of one file after the other, while the next files are being read."""
        remaining = iter(sources)
        ahead: deque[tuple[_File, Iterator[Segment], Future[list[Segment]]]] = deque()
        while True:
            for name, blocks in islice(remaining, _READERS - len(ahead)):
                stream = segments(blocks, self.sample_rate)
                ahead.append((_File(name), stream, readers.submit(_pull, stream)))
            if not ahead:
                return
            file, stream, pulling = ahead.popleft()
            last = False
            while not last:
                try:
                    pulled = pulling.result()
                except AudioError as error:
                    # A result from here on: its frames would hold it, and the recogniser.
                    yield _Chunk(file, [], True, error.with_traceback(None))
                    break
                last = len(pulled) < _READ_AHEAD
                if not last:
                    pulling = readers.submit(_pull, stream)
                yield _Chunk(file, pulled, last, None)

    def _pieces(self, pool: list[_Chunk], files: deque[_File]) -> list[_Piece]:
        """What there is to recognise in a pool; puts each file that begins in it into `files`."""
        pieces = []
        window = self.packaged.filter_bank.size  # with less there is no frame to recognise
        for file, pulled, last, error in pool:
            if not files or files[-1] is not file:
                files.append(file)
            recognisable = [piece for piece in pulled if len(piece.waveform) >= window]
            pieces += [_Piece(file, segment) for segment in recognisable]
            file.pieces += len(recognisable)
            file.samples += sum(len(segment.waveform) for segment in pulled)
            file.read, file.error = last, error
        return pieces

    def _search(self, batch: list[_Piece], log_probs: Tensor, lengths: Tensor) -> list[list[Word]]:
        hypotheses = self.decoder(log_probs.cpu(), lengths.cpu())
        return [
            self._words(hypothesis, piece.segment)
            for hypothesis, piece in zip(hypotheses, batch, strict=True)
        ]

    def _words(self, hypothesis: Hypothesis, segment: Segment) -> list[Word]:
        """Words with times."""
        start = segment.start / self.sample_rate
        stop = start + len(segment.waveform) / self.sample_rate
        step = self.packaged.seconds_per_frame
        return [
            Word(
                word,
                min(start + first * step, stop),
                min(start + end * step, stop),
                confidence,
            )
            for word, (first, end), confidence in zip(
                hypothesis.words, hypothesis.word_frames, hypothesis.confidence, strict=True
            )
        ]

    def _finished(self, files: deque[_File]) -> Iterator[Transcript | AudioError]:
        while files and files[0].finished:
            file = files.popleft()
            if file.error:
                yield file.error
                continue
            words = tuple(word for _, words in sorted(file.words.items()) for word in words)
            text = " ".join(word.text for word in words)
            yield Transcript(file.name, text, file.samples / self.sample_rate, words)


def _name(path: object) -> str:
    if not isinstance(path, str | os.PathLike):
        got = type(path).__name__
        raise ValueError(f"expected a path, got {got}; samples are for transcribe_waveform")
    return str(path)


def _pull(stream: Iterator[Segment]) -> list[Segment]:
    return list(islice(stream, _READ_AHEAD))


def _of_like_length(pool: list[_Piece], samples: float) -> Iterator[list[_Piece]]:
    """Pieces of like length, as many as fit into `samples` when padded, but at least one."""
    batch: list[_Piece] = []
    for piece in sorted(pool, key=lambda piece: -len(piece.segment.waveform)):
        if batch and len(batch[0].segment.waveform) * (len(batch) + 1) > samples:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
