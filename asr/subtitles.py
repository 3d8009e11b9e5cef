"""Transcripts as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from asr.transcribe import Transcript, Word

#: What viewers are used to read at once: two lines of 42 characters, for up to 7 s.
LINE = 42
SECONDS = 7.0
GAP = 1.0  # s; who pauses so long ends a subtitle


def cues(words: Sequence[Word]) -> list[list[Word]]:
    """`words` cut into subtitles of up to two lines and 7 s, and at pauses."""
    groups: list[list[Word]] = [[word] for word in words[:1]]
    for before, word in pairwise(words):
        group = groups[-1]
        fits = len(lines([*group, word])) <= 2 and word.end - group[0].start <= SECONDS
        if fits and word.start - before.end < GAP:
            group.append(word)
        else:
            groups.append([word])
    return groups


def lines(words: Sequence[Word]) -> list[str]:
    """Words side by side as far as a line goes."""
    broken: list[str] = []
    for word in words:
        if broken and len(broken[-1]) + 1 + len(word.text) <= LINE:
            broken[-1] += f" {word.text}"
        else:
            broken.append(word.text)
    return broken


def to_srt(transcript: Transcript) -> str:
    """SubRip: numbered, times with a comma."""
    return "\n".join(
        f"{number}\n{_span(group, ',')}\n{text}\n"
        for number, (group, text) in enumerate(_texts(transcript), 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT, as browsers show it."""
    return "\n".join(
        ["WEBVTT\n", *(f"{_span(group, '.')}\n{text}\n" for group, text in _texts(transcript))]
    )


def _texts(transcript: Transcript) -> Iterator[tuple[list[Word], str]]:
    for group in cues(transcript.words):
        yield group, "\n".join(lines(group))


def _span(words: Sequence[Word], point: str) -> str:
    return f"{_clock(words[0].start, point)} --> {_clock(words[-1].end, point)}"


def _clock(seconds: float, point: str) -> str:
    """00:00:01,500"""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
