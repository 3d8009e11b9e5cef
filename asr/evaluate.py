"""Score a model on a data set: WER and CER of words, PER of phonemes, and how fast it went."""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from asr.audio import read_audio
from asr.data import Utterance
from asr.decode import Decoder, GreedyDecoder, greedy_decode
from asr.errors import AudioError, DataError
from asr.files import replacing
from asr.metrics import ErrorRate, character_error_rate, word_error_rate
from asr.model_dir import Packaged
from asr.segment import segments
from asr.text import normalize
from asr.workers import Workers


@dataclass(frozen=True)
class Row:
    """One utterance: words, or phones where the model's output was not turned into words."""

    id: str
    reference: str
    hypothesis: str
    score: ErrorRate


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `rows` stand worst first, by errors, then by rate."""

    scores: dict[str, ErrorRate]  # by "PER" of the greedy path, "PER beam", "WER", "CER"
    search: str  # "greedy" or "beam": what gave the words
    rows: tuple[Row, ...]
    failures: dict[str, str]  # utterance -> why it could not be scored
    audio_seconds: float
    wall_seconds: float  # reading, features, network and decoding

    @property
    def rtfx(self) -> float:
        """Seconds of audio recognised in a second."""
        return self.audio_seconds / self.wall_seconds

    def search_of(self, name: str) -> str:
        """What gave the hypotheses that the score `name` judges."""
        return "greedy" if name == "PER" else self.search

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows, for JSON."""
        return {
            "scores": {
                name: {"rate": score.rate, "search": self.search_of(name), **asdict(score)}
                for name, score in self.scores.items()
            },
            "utterances": len(self.rows),
            "failures": self.failures,
            "audio_seconds": round(self.audio_seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "rtfx": round(self.rtfx, 1),
        }

    def summary(self) -> str:
        """Scores and speed, a line each."""
        lines = [
            f"{name.split()[0]} {100 * score.rate:7.2f} %  {self.search_of(name):6}  "
            f"({score.substitutions} substitutions, {score.deletions} deletions, "
            f"{score.insertions} insertions in {score.reference_length})"
            for name, score in self.scores.items()
        ]
        lines.append(
            f"RTFx {self.rtfx:6.1f}            ({self.audio_seconds:.1f} s of audio in "
            f"{self.wall_seconds:.1f} s, {len(self.rows)} utterances)"
        )
        return "\n".join(lines)

    def write_rows(self, path: Path) -> None:
        """Write the rows as TSV: id, errors, rate, reference, hypothesis."""
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["id", "errors", "rate", "reference", "hypothesis"])
            for row in self.rows:
                rate = f"{row.score.rate:.4f}"
                writer.writerow([row.id, row.score.errors, rate, row.reference, row.hypothesis])


def evaluate(
    packaged: Packaged,
    utterances: Sequence[Utterance],
    decoder: Decoder | None = None,
    *,
    batch_seconds: float = 120.0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Recognise `utterances` and compare with their transcripts.

    A long one is cut into pieces as `asr.transcribe` cuts it.

    Args:
        packaged: the model; its device is the one it was loaded on.
        utterances: with transcripts; an unreadable one is named in `failures`, the rest is done.
        decoder: what turns emissions into words; None, or a GreedyDecoder, is the greedy path. A
            phoneme model is scored by PER on the greedy path in either case, and on the phones of
            the words that a beam search found.
        batch_seconds: cap on the padded audio that goes through the network at once.
        on_progress: called after each batch with the number of utterances done so far.

    Raises:
        DataError: there is no utterance, no word in their transcripts, none that is readable, or
            a transcript has no phonemes.
    """
    if not utterances:
        raise DataError("evaluate: expected at least one utterance, got none")
    if not any(utterance.text.split() for utterance in utterances):
        raise DataError("evaluate: expected transcripts with words, got none")
    if isinstance(decoder, GreedyDecoder):
        decoder = None
    # First, so that a transcript which cannot be phonemes is named before the work is done.
    phones = _reference_phones(packaged, utterances)
    failures: dict[str, str] = {}  # utterance -> reason
    found: dict[int, list[_Recognised]] = {}  # by the place of an utterance
    start = time.perf_counter()
    sample_rate = packaged.config.features.sample_rate
    recognised = Workers.of_this_process().run(
        packaged,
        _read_batches(utterances, sample_rate, batch_seconds, failures),
        attrgetter("waveform"),
        partial(_recognise, packaged, decoder),
    )
    with closing(recognised):
        for batch, readings in recognised:
            for piece, reading in zip(batch, readings, strict=True):
                found.setdefault(piece.number, []).append(reading)
            on_progress(len(found) + len(failures))
    wall_seconds = time.perf_counter() - start
    done = [_joined(pieces) for pieces in found.values()]
    if not done:
        first = next(iter(failures.values()))
        raise DataError(f"evaluate: none of {len(utterances)} utterances is readable; {first}")

    scores: dict[str, ErrorRate] = {}
    references = [normalize(item.utterance.text) for item in done]
    hypotheses = [item.text for item in done]
    if phones is not None:
        spoken = [phones[item.utterance] for item in done]
        scores["PER"] = word_error_rate(spoken, [item.greedy for item in done])
        if decoder is None:
            references = spoken
        else:
            scores["PER beam"] = word_error_rate(spoken, [item.phones for item in done])
    if phones is None or decoder is not None:
        scores["WER"] = word_error_rate(references, hypotheses)
        scores["CER"] = character_error_rate(references, hypotheses)
    rows = [
        Row(item.utterance.id, reference, item.text, word_error_rate([reference], [item.text]))
        for item, reference in zip(done, references, strict=True)
    ]
    rows.sort(key=lambda row: (-row.score.errors, -row.score.rate, row.id))
    audio_seconds = sum(item.samples for item in done) / sample_rate
    search = "greedy" if decoder is None else "beam"
    return Evaluation(scores, search, tuple(rows), failures, audio_seconds, wall_seconds)


class _Piece(NamedTuple):
    """Of a recording, or all of it."""

    number: int  # the utterance's place among all
    utterance: Utterance
    start: int  # its first sample's place
    waveform: Tensor  # [N]


class _Recognised(NamedTuple):
    utterance: Utterance
    start: int
    samples: int
    greedy: str
    text: str  # the decoder's words; without one, what the greedy path reads
    phones: str  # units of these words


def _joined(pieces: list[_Recognised]) -> _Recognised:
    """All of a recording."""
    utterances, starts, samples, *readings = zip(
        *sorted(pieces, key=attrgetter("start")), strict=True
    )
    texts = (" ".join(filter(None, parts)) for parts in readings)
    return _Recognised(utterances[0], starts[0], sum(samples), *texts)


def _reference_phones(
    packaged: Packaged, utterances: Sequence[Utterance]
) -> dict[Utterance, str] | None:
    """Phones of each utterance; None for a model of words."""
    if packaged.config.units.kind != "phoneme":
        return None
    tokenizer = packaged.tokenizer
    return {u: tokenizer.decode(tokenizer.encode(normalize(u.text))) for u in utterances}


def _recognise(
    packaged: Packaged,
    decoder: Decoder | None,
    batch: list[_Piece],
    log_probs: Tensor,  # [B, T', V]
    frames: Tensor,  # [B]
) -> list[_Recognised]:
    greedy = [
        packaged.tokenizer.decode([unit for unit, _, _ in path])
        for path in greedy_decode(log_probs, frames, packaged.config.decode.blank_penalty)
    ]
    texts = phones = greedy
    if decoder is not None:
        hypotheses = decoder(log_probs, frames)
        texts = [" ".join(hypothesis.words) for hypothesis in hypotheses]
        phones = [packaged.tokenizer.decode(list(hypothesis.tokens)) for hypothesis in hypotheses]
    return [
        _Recognised(piece.utterance, piece.start, piece.waveform.numel(), *readings)
        for piece, *readings in zip(batch, greedy, texts, phones, strict=True)
    ]


def _read_batches(
    utterances: Sequence[Utterance],
    sample_rate: int,
    batch_seconds: float,
    failures: dict[str, str],
) -> Iterator[list[_Piece]]:
    """Pieces of utterances of like length; one longer than the cap goes alone."""
    batch: list[_Piece] = []
    longest = 0
    for number, utterance in sorted(enumerate(utterances), key=lambda pair: pair[1].seconds):
        try:
            waveform = read_audio(utterance.audio, sample_rate)
        except AudioError as error:
            failures[utterance.id] = str(error)
            continue
        # The manifest's duration only sorts: a TSV need not have it.
        for piece in segments([waveform], sample_rate):
            longest = max(longest, piece.waveform.numel())
            if batch and longest * (len(batch) + 1) > batch_seconds * sample_rate:
                yield batch
                batch = []
                longest = piece.waveform.numel()
            batch.append(_Piece(number, utterance, *piece))
    if batch:
        yield batch
