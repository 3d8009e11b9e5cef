"""How much of what nobody said comes out as words: 117 synthetic noises of 1, 3 and 10 s.

    python scripts/measure_noise.py                      # the packaged model
    python scripts/measure_noise.py --min-confidence 0   # with every word that the search finds

Thirteen kinds, each with three draws of its pitches, rhythms and levels. They have what `asr.level`
looks for in speech, contrast or a voice's periodicity, so that the network gets to hear them.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from asr import load_model

RATE = 16000
Samples = NDArray[np.float64]  # [n]


def _coloured(n: int, rng: Generator, slope: float) -> Samples:
    """Noise whose amplitude falls with frequency ** slope, with a peak of 1."""
    spectrum = np.fft.rfft(rng.normal(size=n))
    noise = np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** slope, n)
    return noise / np.abs(noise).max()


def _gusts(n: int, rng: Generator, per_second: int) -> Samples:
    """A level that wanders between 0 and 1."""
    points = per_second * n // RATE + 2
    return np.interp(np.arange(n), np.linspace(0, n, points), rng.random(points))


def _tone(n: int, hertz: float | Samples) -> Samples:
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(hertz, n)) / RATE)


def _hum(n: int, rng: Generator) -> Samples:
    pitch = rng.uniform(45, 130)
    hum = sum(_tone(n, pitch * k) / k for k in range(1, 8))
    return 0.1 * hum + 0.002 * rng.normal(size=n)


def _clicks(n: int, rng: Generator) -> Samples:
    clicks = np.zeros(n)
    for place in rng.integers(0, n - 400, 6 * n // RATE + 1):
        burst = rng.normal(size=400) * np.exp(-np.arange(400) / 60)
        clicks[place : place + 400] += rng.uniform(0.05, 0.5) * burst
    return clicks + 0.001 * rng.normal(size=n)


def _melody(n: int, rng: Generator) -> Samples:
    melody = np.zeros(n)
    place = 0
    while place < n:
        note = min(int(rng.uniform(0.15, 0.6) * RATE), n - place)
        pitch = 220 * 2 ** (rng.integers(0, 24) / 12)
        sound = sum(_tone(note, pitch * k) / k**1.5 for k in range(1, 8))
        melody[place : place + note] = sound * np.exp(-3 * np.arange(note) / RATE)
        place += note
    return 0.2 * melody


def _chord(n: int, rng: Generator) -> Samples:
    pitches = 220 * 2 ** (rng.choice(24, 4) / 12)
    return 0.1 * sum(_tone(n, pitch) for pitch in pitches) * np.exp(-0.3 * np.arange(n) / RATE)


def _beeps(n: int, rng: Generator) -> Samples:
    on = (np.arange(n) / RATE * rng.uniform(1, 5)) % 1 < 0.4
    return 0.2 * _tone(n, rng.uniform(400, 1500)) * on + 0.001 * rng.normal(size=n)


def _steps(n: int, rng: Generator) -> Samples:
    since = np.arange(n) / RATE * 2 % 1
    return 0.003 * _coloured(n, rng, 0.5) + 0.2 * np.exp(-30 * since) * _coloured(n, rng, 0.75)


def _siren(n: int, rng: Generator) -> Samples:
    return 0.2 * _tone(n, 600 + 300 * _tone(n, rng.uniform(0.3, 0.8)))


def _engine(n: int, rng: Generator) -> Samples:
    return 0.06 * np.sign(_tone(n, 60 + 20 * _gusts(n, rng, 1))) + 0.02 * _coloured(n, rng, 0.5)


KINDS: dict[str, Callable[[int, Generator], Samples]] = {
    "hum": _hum,
    "wandering hum": lambda n, rng: _hum(n, rng) * _gusts(n, rng, 4),
    "tone": lambda n, rng: 0.2 * _tone(n, rng.uniform(200, 2000)),
    "beeps": _beeps,
    "clicks": _clicks,
    "clicks in a room": lambda n, rng: 0.02 * _coloured(n, rng, 0.75) + 0.3 * _clicks(n, rng),
    "wind": lambda n, rng: 0.2 * _coloured(n, rng, 1) * _gusts(n, rng, 3),
    "wandering hiss": lambda n, rng: 0.1 * rng.normal(size=n) * _gusts(n, rng, 6),
    "melody": _melody,
    "chord": _chord,
    "siren": _siren,
    "engine": _engine,
    "steps": _steps,
}


def noises(repeats: int = 3) -> Iterator[tuple[str, torch.Tensor]]:
    """Each kind for 1, 3 and 10 s, `repeats` times: name, samples [n]."""
    rng = np.random.default_rng(0)
    for name, make in KINDS.items():
        for seconds in (1, 3, 10):
            for _ in range(repeats):
                samples = make(seconds * RATE, rng).clip(-1, 1)
                yield name, torch.from_numpy(samples.astype(np.float32))


def main() -> None:
    """Print, for each kind, how many of its noises have words, and one of these texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--min-confidence", type=float, help="instead of the model's own")
    recognizer = load_model(min_confidence=parser.parse_args().min_confidence)
    texts: dict[str, list[str]] = {name: [] for name in KINDS}
    for name, samples in noises():
        texts[name].append(recognizer.transcribe_waveform(samples).text)
    for name, said in texts.items():
        heard = [text for text in said if text]
        print(f"{name:17} {len(heard)} of {len(said)}  {max(heard, key=len, default='')[:60]}")
    count = sum(bool(text) for said in texts.values() for text in said)
    print(f"{'together':17} {count} of {sum(map(len, texts.values()))}")


if __name__ == "__main__":
    main()
