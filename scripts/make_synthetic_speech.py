"""Make a corpus of synthetic speech with espeak-ng: many voices, speeds, pitches, rooms, noises.

    python scripts/make_synthetic_speech.py --text books.txt.xz --hours 0.7 --out synthetic
    asr prepare tsv synthetic data --name synthetic --dev-every 20

Utterance i depends on the seed and i only: the same command gives the same corpus (FLAC files
byte for byte), whatever the number of jobs.
"""

import argparse
import io
import lzma
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from espeak import speak

from asr.audio import SAMPLE_RATE
from asr.errors import DataError
from asr.files import replacing, write_text
from asr.text import normalize

LANGUAGES = (
    "en-us",
    "en-us",  # twice: what most of the real speech aims at
    "en-gb",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-us-nyc",
)
VARIANTS = (
    *("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    *("klatt", "klatt2", "klatt3", "klatt4", "Alicia", "Andrea", "Andy", "Annie", "Gene", "Hugo"),
    *("Lee", "Mario", "Michael", "Mike", "adam", "anika", "aunty", "benjamin", "boris", "caleb"),
    *("david", "ed", "edward", "gustave", "iven", "john", "linda", "max", "michel", "paul", "rob"),
    *("robert", "steph", "steph2", "travis", "victor", "zac"),
)

DIGITS = ("ZERO", "OH", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
PEOPLE = ("I", "YOU", "WE", "THEY", "MY FRIENDS", "THE CHILDREN", "MY PARENTS", "MOST PEOPLE")
VERBS = ("LIKE", "WANT", "NEED", "REMEMBER", "HAVE", "CAN SEE", "ASKED FOR", "LOOKED AT", "BOUGHT")
OBJECTS = (
    *("A CUP OF TEA", "SOME BREAD", "THE RED BALL", "A NEW PHONE", "THE BLUE CAR", "MY BOOK"),
    *("FRESH WATER", "A LITTLE DOG", "THE BIG HOUSE", "TWO TICKETS", "AN APPLE", "THE MUSIC"),
    *("A WARM COAT", "THE NEXT TRAIN", "SOME HELP", "A GOOD TEACHER", "THE ANSWER", "LUNCH"),
)
TIMES = (
    *("TODAY", "TOMORROW", "YESTERDAY", "THIS MORNING", "ON MONDAY", "ON FRIDAY", "AFTER SCHOOL"),
    *("AT HOME", "IN THE GARDEN", "NEAR THE STATION", "EVERY DAY", "NOW", "AT SEVEN O'CLOCK"),
)
COMMANDS = (
    *("TURN ON THE LIGHT", "OPEN THE WINDOW", "PLEASE CLOSE THE DOOR", "STOP THE MUSIC"),
    *("CALL MY MOTHER", "SET AN ALARM FOR SIX", "GO BACK HOME", "WAIT FOR ME", "SAY IT AGAIN"),
    *("READ THE NEXT PAGE", "TELL ME A STORY", "SHOW ME THE WAY", "PLAY SOMETHING QUIET"),
)

_PLAIN = re.compile("[A-Z' ]+")
_ROMAN = re.compile(
    r"\b(?=[IVXL]{2})(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?!\w)"
)  # said as "roman six"
_CHUNK = 64  # utterances made between two looks at the hours


class Spoken(NamedTuple):
    """An utterance, encoded."""

    audio: bytes
    speaker: str
    seconds: float
    text: str


def everyday(rng: np.random.Generator) -> str:
    """A short sentence of daily life, a command or a string of digits."""
    kind = rng.integers(3)
    if kind == 0:
        return " ".join(rng.choice(DIGITS, size=rng.integers(2, 9)))
    if kind == 1:
        return str(rng.choice(COMMANDS))
    return " ".join(str(rng.choice(part)) for part in (PEOPLE, VERBS, OBJECTS, TIMES))


def reverberate(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`[N]` -> `[N]`: add the tail of a room, noise that decays by 60 dB in 0.1 to 0.5 s."""
    seconds = rng.uniform(0.1, 0.5)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    direct_to_tail = rng.uniform(3, 20)  # dB
    tail *= 10 ** (-direct_to_tail / 20) / np.sqrt(np.sum(tail**2))
    tail[0] += 1
    size = len(speech) + len(tail)
    product = np.fft.rfft(speech, size) * np.fft.rfft(tail, size)
    return np.fft.irfft(product, size)[: len(speech)]


def add_noise(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`[N]` -> `[N]`: add noise between white and brown at 8 to 40 dB below the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(len(speech)))
    slope = rng.uniform(0, 1)  # of the amplitude: 0 is white, 0.5 pink, 1 brown
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -slope
    noise = np.fft.irfft(spectrum, len(speech))
    ratio = rng.uniform(8, 40)  # dB
    gain = np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-ratio / 20)
    return speech + gain * noise


def record(text: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Say `text` with a random voice into a random microphone: `[N]` in [-1, 1], the voice."""
    voice = f"{rng.choice(LANGUAGES)}+{rng.choice(VARIANTS)}"
    speech = speak(
        text.lower(),  # capitals may be spelt
        voice,
        speed=int(rng.integers(120, 211)),
        pitch=int(rng.integers(20, 81)),
        gap=int(rng.integers(0, 4)),
    )
    before, after = (rng.uniform(0.05, 0.4, size=2) * SAMPLE_RATE).astype(int)
    speech = np.pad(speech, (before, after))
    if rng.random() < 0.5:
        speech = reverberate(speech, rng)
    speech = add_noise(speech, rng)
    peak = 10 ** (rng.uniform(-25, -1) / 20)
    return speech * peak / np.abs(speech).max(), voice


def utterance(job: tuple[int, int, str, str]) -> Spoken:
    """Make utterance `index` of the corpus with this seed."""
    seed, index, text, audio_format = job
    waveform, voice = record(text, np.random.default_rng([seed, index]))
    file = io.BytesIO()
    if audio_format == "opus":
        soundfile.write(file, waveform, SAMPLE_RATE, format="OGG", subtype="OPUS")
    else:
        soundfile.write(file, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return Spoken(file.getvalue(), voice, len(waveform) / SAMPLE_RATE, text)


def read_sentences(path: Path, shortest: int, longest: int) -> list[str]:
    """The lines of a text (plain or .xz) that have a number of words within these bounds."""
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return [line for line in file if shortest <= len(line.split()) <= longest]
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot read sentences: {error}") from None


def plan(sentences: Sequence[str], share: float, seed: int, endless: bool) -> Iterator[str]:
    """What to say: `sentences` in random order, once or for ever, everyday ones between them.

    Sentences with digits or Roman numerals are left out: how they are said is not written.
    """
    rng = np.random.default_rng(seed)
    while True:
        said = False
        for index in rng.permutation(len(sentences)):
            text = normalize(sentences[index])
            if not _PLAIN.fullmatch(text) or _ROMAN.search(text):
                continue
            said = True
            while rng.random() < share:
                yield everyday(rng)
            yield text
        if not said:
            raise DataError("expected sentences of letters and apostrophes, found none")
        if not endless:
            return


def make(
    texts: Iterator[str], out: Path, hours: float | None, seed: int, jobs: int, audio_format: str
) -> tuple[int, float]:
    """Write `OUT/audio/*` and, last, `OUT/utterances.tsv`: how many utterances, how many hours."""
    rows = ["path\tspeaker\tseconds\ttranscript"]
    total = 0.0
    with ThreadPoolExecutor(jobs) as pool:  # each waits for an espeak-ng of its own
        while hours is None or total < hours * 3600:
            batch = list(islice(texts, _CHUNK))
            if not batch:
                break
            work = [(seed, len(rows) + i, text, audio_format) for i, text in enumerate(batch)]
            for spoken in pool.map(utterance, work):
                if hours is not None and total >= hours * 3600:
                    break
                name = f"audio/{len(rows):06d}.{audio_format}"
                with replacing(out / name) as partial:
                    partial.write_bytes(spoken.audio)
                rows.append(f"{name}\t{spoken.speaker}\t{spoken.seconds:.3f}\t{spoken.text}")
                total += spoken.seconds
    write_text(out / "utterances.tsv", "\n".join(rows) + "\n")
    return len(rows) - 1, total / 3600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="text, one sentence a line; plain or .xz")
    parser.add_argument("--sentence", action="append", default=[], help="may be given again")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--hours", type=float, help="stop there; by default each sentence once")
    parser.add_argument("--words", type=int, nargs=2, default=(4, 14), metavar=("MIN", "MAX"))
    parser.add_argument("--everyday", type=float, default=0.1, help="share of generated sentences")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="utterances at a time")
    parser.add_argument("--format", choices=("flac", "opus"), default="flac")
    arguments = parser.parse_args()
    if not 0 <= arguments.everyday < 1:
        parser.error(f"--everyday: expected a share from 0 to below 1, got {arguments.everyday}")
    try:
        sentences = [*arguments.sentence]
        if arguments.text:
            sentences += read_sentences(arguments.text, *arguments.words)
        texts = plan(sentences, arguments.everyday, arguments.seed, arguments.hours is not None)
        count, hours = make(
            texts, arguments.out, arguments.hours, arguments.seed, arguments.jobs, arguments.format
        )
    except DataError as error:
        sys.exit(f"make_synthetic_speech: {error}")
    print(f"{arguments.out}: {count} utterances, {hours:.2f} hours")


if __name__ == "__main__":
    main()
