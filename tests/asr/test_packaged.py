"""The model that comes with the package keeps what README says of it."""

from pathlib import Path

import pytest
import torch

from asr import Recognizer, load_model
from asr.audio import read_audio
from asr.description import PACKAGED_MODEL

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return load_model(device="cpu")


def test_reads_the_sample(recognizer: Recognizer) -> None:
    expected = (DOCS / "sample.txt").read_text(encoding="utf-8").strip()
    assert recognizer.transcribe(DOCS / "sample.flac").text == expected


@pytest.mark.parametrize("level", [0.0, 1e-4, 1e-3, 1e-2, 0.1])
def test_hears_nothing_in_silence_and_noise(recognizer: Recognizer, level: float) -> None:
    noise = level * torch.randn(160000, generator=torch.Generator().manual_seed(0))
    assert recognizer.transcribe_waveform(noise).text == ""


def test_hears_nothing_in_hum(recognizer: Recognizer) -> None:
    seconds = torch.arange(160000) / 16000
    hum = 0.1 * torch.sin(2 * torch.pi * 50 * seconds)
    assert recognizer.transcribe_waveform(hum).text == ""


@pytest.mark.parametrize("level", [1.0, 0.1])
def test_hears_nothing_in_a_tone_and_all_beside_it(recognizer: Recognizer, level: float) -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(32000) / 16000)
    assert recognizer.transcribe_waveform(tone).text == ""
    speech = level * read_audio(DOCS / "sample.flac")
    words = recognizer.transcribe_waveform(torch.cat([tone, speech])).words
    assert words[0].start > 1.9
    expected = recognizer.transcribe_waveform(speech).text.split()
    missed = set(expected) - {word.text for word in words}
    assert len(missed) <= 2  # the mean that is taken off has changed a little


def test_hears_nothing_in_wind_and_engines(recognizer: Recognizer) -> None:
    """They have contrast, or a voice's periodicity; words that come of them are unlikely."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(48000) / 16000
    noise = torch.fft.rfft(torch.randn(48000, generator=generator))
    brown = torch.fft.irfft(noise / torch.arange(1, len(noise) + 1), 48000)
    gusts = torch.rand(1, 1, 11, generator=generator)
    wind = brown * torch.nn.functional.interpolate(gusts, 48000, mode="linear")[0, 0]
    engine = torch.sin(2 * torch.pi * (70 * seconds + 2 * torch.sin(seconds))).sign() + brown
    for sound in (wind, engine):
        assert recognizer.transcribe_waveform(0.2 * sound / sound.abs().max()).text == ""


def test_files_fit_the_repository() -> None:
    sizes = [path.stat().st_size for path in PACKAGED_MODEL.iterdir()]
    assert max(sizes) < 13_000_000
    assert sum(sizes) < 40_000_000
