"""A text and its recording -> when each of its words and units is said."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from asr.audio import read_blocks
from asr.errors import DataError
from asr.model_dir import Packaged
from asr.segment import segments
from asr.text import foreign_letters, normalize
from asr.tokenizer import CharacterTokenizer, Tokenizer

_DIGITS = 6  # of a time in seconds: 21 frames are as long as 20 and 1


@dataclass(frozen=True)
class AlignedUnit:
    """A phone, character or subword in the frames in which the network emits it.

    CTC emits a unit as a peak near its middle: its beginning and end are those of the peak.
    """

    text: str
    start: float  # seconds from the recording's beginning
    end: float
    confidence: float  # geometric mean of its posterior probability in its frames


@dataclass(frozen=True)
class AlignedWord:
    """A word of the text, from its first unit's beginning to its last unit's end."""

    text: str
    units: tuple[AlignedUnit, ...]

    @property
    def start(self) -> float:
        """Seconds from the recording's beginning."""
        return self.units[0].start

    @property
    def end(self) -> float:
        """Seconds from the recording's beginning."""
        return self.units[-1].end

    @property
    def confidence(self) -> float:
        """Mean over its units."""
        return sum(unit.confidence for unit in self.units) / len(self.units)


@dataclass(frozen=True)
class Aligned:
    """A text laid along its recording."""

    file: str
    duration: float  # seconds
    words: tuple[AlignedWord, ...]
    log_probs: Tensor  # [T, V] float32, what the network heard
    path: Tensor  # [T] int64, unit of each frame
    times: Tensor  # [T] float64, when each frame begins

    def to_dict(self) -> dict[str, Any]:
        """Words and units as plain data for JSON; times to the millisecond."""
        return {
            "file": self.file,
            "text": " ".join(word.text for word in self.words),
            "duration": round(self.duration, 3),
            "words": [
                {**_plain(word), "units": [_plain(unit) for unit in word.units]}
                for word in self.words
            ],
        }

    def to_textgrid(self) -> str:
        """Praat's TextGrid with the tiers `words` and `units`; what is between has no text."""
        tiers: dict[str, Sequence[AlignedWord | AlignedUnit]] = {
            "words": self.words,
            "units": [unit for word in self.words for unit in word.units],
        }
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
        lines += ["xmin = 0", f"xmax = {self.duration:.6f}", "tiers? <exists>"]
        lines += [f"size = {len(tiers)}", "item []:"]
        for number, (name, parts) in enumerate(tiers.items(), 1):
            intervals = list(_without_gaps(parts, self.duration))
            lines += [f"    item [{number}]:", '        class = "IntervalTier"']
            lines += [f'        name = "{name}"', "        xmin = 0"]
            lines += [f"        xmax = {self.duration:.6f}"]
            lines += [f"        intervals: size = {len(intervals)}"]
            for index, (start, end, text) in enumerate(intervals, 1):
                lines += [f"        intervals [{index}]:", f"            xmin = {start:.6f}"]
                lines += [f"            xmax = {end:.6f}", f'            text = "{text}"']
        return "\n".join(lines) + "\n"


def _plain(part: AlignedWord | AlignedUnit) -> dict[str, Any]:
    return {
        "text": part.text,
        "start": round(part.start, 3),
        "end": round(part.end, 3),
        "confidence": round(part.confidence, 3),
    }


def _without_gaps(
    parts: Sequence[AlignedWord | AlignedUnit], duration: float
) -> Iterator[tuple[float, float, str]]:
    """Intervals that touch, from 0 to `duration`."""
    now = 0.0
    for part in parts:
        if part.start > now:
            yield now, part.start, ""
        yield part.start, part.end, part.text
        now = part.end
    if duration > now:
        yield now, duration, ""


def read_text(text_or_file: str) -> str:
    """A text, or what the file of that name holds, normalised.

    Raises:
        DataError: what looks like a file's name, NAME.txt, and there is none; or no words, or
            letters of another script.
    """
    text = text_or_file
    # Path's own raise on a long text.
    exists, is_folder = os.path.exists(text), os.path.isdir(text)  # noqa: PTH110, PTH112
    is_file = exists and (not is_folder or "/" in text)  # a word may be a folder's name, too
    if is_file or re.fullmatch(r"\S+\.\w\w+|.+\.txt", text_or_file):
        try:
            text = Path(text_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
            raise DataError(f"{text_or_file}: cannot read the text: {reason}") from None
    words = normalize(text)
    if letters := foreign_letters(text):
        raise DataError(f"expected a text to align in letters of A-Z, got {letters}")
    if not words:
        raise DataError(f"expected a text to align, got no words in {text_or_file!r}")
    return words


def align(packaged: Packaged, path: str | Path, text: str) -> Aligned:
    """Find when each word of `text` is said in a recording.

    A phoneme model takes each word's first pronunciation, or guesses one where the lexicon has
    none. Of a long recording the pieces go through the network one by one, the alignment goes
    through all of it, and takes a byte for each frame and unit of the text.

    Args:
        packaged: the model, on its device.
        path: recording of any length.
        text: normalised words.

    Raises:
        AudioError: the file cannot be read.
        DataError: there are more units than frames to say them in.
    """
    tokens, spans = _spell(packaged.tokenizer, text.split())
    log_probs, times, duration = _listen(packaged, path)
    T = len(log_probs)
    if T:
        targets = torch.tensor([tokens], device=log_probs.device)
        result = kernels.ctc_align(log_probs[:, None], targets, [T], [len(tokens)])
    if not T or not result.score.isfinite().all():
        raise DataError(
            f"{path}: expected a text that can be said in {duration:.1f} s, {T} frames of the "
            f"network, got {len(spans)} words of {len(tokens)} units; is it the right text?"
        )
    # The last frame of a piece may reach into the next piece.
    following = F.pad(times[1:], (0, 1), value=duration)
    until = torch.minimum(times + packaged.seconds_per_frame, following)
    starts, ends, scores = (field[0].cpu() for field in result[2:])
    units = [
        AlignedUnit(
            packaged.tokenizer.units[token],
            round(float(times[start]), _DIGITS),
            round(float(until[end - 1]), _DIGITS),
            score,
        )
        for token, start, end, score in zip(
            tokens, starts.tolist(), ends.tolist(), scores.exp().tolist(), strict=True
        )
    ]
    words = tuple(
        AlignedWord(word, tuple(units[first:last]))
        for word, (first, last) in zip(text.split(), spans, strict=True)
    )
    return Aligned(str(path), duration, words, log_probs.cpu(), result.path[0].cpu(), times)


def _spell(tokenizer: Tokenizer, words: list[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """Units of a text, and of each word its first unit and its last unit + 1."""
    separator = [tokenizer.separator] if isinstance(tokenizer, CharacterTokenizer) else []
    tokens: list[int] = []
    spans = []
    for word in words:
        if tokens:
            tokens += separator
        first = len(tokens)
        tokens += tokenizer.encode(word)
        spans.append((first, len(tokens)))
    return tokens, spans


def _listen(packaged: Packaged, path: str | Path) -> tuple[Tensor, Tensor, float]:
    """Log-probabilities [T, V], when each frame begins [T], and the recording's duration."""
    rate = packaged.config.features.sample_rate
    emissions = [torch.empty(0, len(packaged.tokenizer.units), device=packaged.device)]
    times = [torch.empty(0, dtype=torch.float64)]
    samples = 0
    for start, waveform in segments(read_blocks(path, rate), rate):
        samples = start + len(waveform)
        if len(waveform) < packaged.filter_bank.size:
            continue  # nothing to hear in less than a window
        log_probs, _ = packaged.emissions(waveform[None], torch.tensor([len(waveform)]))
        emissions.append(log_probs[0])
        frames = torch.arange(log_probs.shape[1], dtype=torch.float64)
        times.append(start / rate + frames * packaged.seconds_per_frame)
    return torch.cat(emissions), torch.cat(times), samples / rate
