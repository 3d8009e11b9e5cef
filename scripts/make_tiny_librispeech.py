"""Make a tiny corpus laid out exactly like LibriSpeech, to try preparation and training with.

Spoken by espeak-ng, or with --tones by a sine for each letter, which needs no espeak-ng and which
a tiny model can learn.
"""

import argparse
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from espeak import speak

from asr.audio import SAMPLE_RATE
from asr.errors import DataError
from asr.files import replacing, write_text
from asr.prepare.librispeech import SPLITS

WORDS = (
    *("THE", "OLD", "HOUSE", "STOOD", "NEAR", "A", "QUIET", "RIVER", "WHERE", "BROWN", "FOXES"),
    *("JUMPED", "OVER", "LAZY", "DOGS", "AND", "KING'S", "MEN", "CAME", "BY", "VERY", "LATE"),
)
VOICES = ("en-us", "en-us+f3", "en-gb", "en-gb+f2")
NAMES = ("Ada Alder", "Ben Birch", "Cleo Cedar", "Dan Dogwood")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
LOWEST, HIGHEST = 400.0, 6000.0  # Hz of A and of the apostrophe
LETTER, GAP = 0.10, 0.02  # seconds; a space is as long as a letter

LICENSE = "Synthesised by scripts/make_tiny_librispeech.py; it holds nobody's speech.\n"
README = """A tiny corpus with the folders and files of LibriSpeech (Panayotov et al. 2015).

SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac   16 kHz, one channel
SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt   a line for each of them: its name, its text
SPEAKERS.TXT, CHAPTERS.TXT                        tables of what there is
"""

Voice = Callable[[str, int], np.ndarray]  # text, speaker -> [N] at 16 kHz


def tones(text: str, speaker: int) -> np.ndarray:
    """A sine for each letter, silence for a space; speakers differ in pitch by a few percent."""
    spacing = (HIGHEST / LOWEST) ** (1 / (len(LETTERS) - 1))
    detune = spacing ** (0.2 * (speaker % 3 - 1))
    time = np.arange(round(LETTER * SAMPLE_RATE)) / SAMPLE_RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    gap = np.zeros(round(GAP * SAMPLE_RATE))
    pieces = [np.zeros_like(time)]
    for letter in text:
        frequency = 0.0
        if letter != " ":
            frequency = LOWEST * detune * spacing ** LETTERS.index(letter)
        pieces += [0.3 * fade * np.sin(2 * np.pi * frequency * time), gap]
    return np.concatenate([*pieces, np.zeros_like(time)])


def speech(text: str, speaker: int) -> np.ndarray:
    """espeak-ng's speech."""
    return 0.5 * speak(text.lower(), VOICES[speaker % len(VOICES)])


def make_chapter(folder: Path, speaker: int, utterances: int, say: Voice) -> float:
    """Write a chapter's utterances and its transcript: its length in seconds."""
    stem = f"{speaker}-{folder.name}"
    rng = np.random.default_rng(zlib.crc32(stem.encode()))
    lines, seconds = [], 0.0
    for number in range(utterances):
        text = " ".join(rng.choice(WORDS, size=rng.integers(2, 6), replace=False))
        waveform = say(text, speaker)
        with replacing(folder / f"{stem}-{number:04d}.flac") as partial:
            soundfile.write(partial, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        lines.append(f"{stem}-{number:04d} {text}\n")
        seconds += len(waveform) / SAMPLE_RATE
    write_text(folder / f"{stem}.trans.txt", "".join(lines))
    return seconds


def make_corpus(out: Path, splits: list[str], utterances: int, say: Voice) -> Path:
    """Write `OUT/LibriSpeech`: two speakers a split, the first with two chapters."""
    root = out / "LibriSpeech"
    speakers = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    chapters = [
        ";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE"
    ]
    for split in splits:
        for place in range(2):
            speaker = 100 + 10 * SPLITS.index(split) + place
            minutes = []
            for chapter in range(1000 * speaker, 1000 * speaker + 2 - place):
                folder = root / split / str(speaker) / str(chapter)
                minutes.append(make_chapter(folder, speaker, utterances, say) / 60)
                chapters.append(
                    f"{chapter:<7}|{speaker:<6}| {minutes[-1]:<6.2f}| {split:<17}| 1    | 1     "
                    f"| Chapter {len(minutes)} | Tiny LibriSpeech"
                )
            sex, name = "MF"[speaker % 2], NAMES[speaker % len(NAMES)]
            speakers.append(f"{speaker:<5}| {sex} | {split:<17}| {sum(minutes):<6.2f}| {name}")
    write_text(root / "SPEAKERS.TXT", "\n".join(speakers) + "\n")
    write_text(root / "CHAPTERS.TXT", "\n".join(chapters) + "\n")
    write_text(root / "LICENSE.TXT", LICENSE)
    write_text(root / "README.TXT", README)
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder that LibriSpeech goes to")
    parser.add_argument("--tones", action="store_true", help="sines instead of espeak-ng")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--utterances", type=int, default=3, help="in a chapter")
    arguments = parser.parse_args()
    say = tones if arguments.tones else speech
    try:
        root = make_corpus(arguments.out, arguments.splits, arguments.utterances, say)
    except DataError as error:
        sys.exit(f"make_tiny_librispeech: {error}")
    print(root)


if __name__ == "__main__":
    main()
