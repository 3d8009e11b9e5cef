"""Synthesise the sample recording that the README transcribes: docs/sample.flac and .txt."""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
from espeak import speak

from asr.audio import SAMPLE_RATE
from asr.errors import DataError
from asr.files import replacing, write_text
from asr.text import normalize

SENTENCES = (
    "The children walked along the river in the morning sun.",
    "They rested under an old tree and told each other a long story.",
)
VOICE = "en-us"
SPEED = 165  # words a minute
PAUSE = 0.35  # seconds before, between and after the sentences
PEAK = 0.5


def sample() -> np.ndarray:
    """The sentences in one recording: `[N]` float32, 16 kHz."""
    pause = np.zeros(round(PAUSE * SAMPLE_RATE), np.float32)
    pieces = [pause]
    for sentence in SENTENCES:
        pieces += [speak(sentence, VOICE, SPEED), pause]
    waveform = np.concatenate(pieces)
    return waveform * (PEAK / np.abs(waveform).max())


def main() -> None:
    docs = Path(__file__).parent.parent / "docs"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=docs / "sample.flac")
    out = parser.parse_args().out
    try:
        waveform = sample()
    except DataError as error:
        sys.exit(f"make_sample: {error}")
    with replacing(out) as partial:
        soundfile.write(partial, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    write_text(out.with_suffix(".txt"), normalize(" ".join(SENTENCES)) + "\n")
    print(f"{out}: {len(waveform) / SAMPLE_RATE:.2f} s, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
