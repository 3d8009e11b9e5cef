"""The tiny corpus has LibriSpeech's layout, and its tones can be told apart."""

import shutil
import sys
from pathlib import Path

import make_tiny_librispeech as script
import numpy as np
import pytest
import soundfile


def test_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["make", str(tmp_path), "--tones", "--splits", "dev-other", "--utterances", "2"]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    root = tmp_path / "LibriSpeech"
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        *("SPEAKERS.TXT", "CHAPTERS.TXT", "LICENSE.TXT", "README.TXT"),
        *(
            f"dev-other/{speaker}/{chapter}/{speaker}-{chapter}{end}"
            for speaker, chapter in ((140, 140000), (140, 140001), (141, 141000))
            for end in ("-0000.flac", "-0001.flac", ".trans.txt")
        ),
    }
    speakers = [line.split("|") for line in (root / "SPEAKERS.TXT").read_text().splitlines()]
    assert [[cell.strip() for cell in row[:3]] for row in speakers[1:]] == [
        ["140", "M", "dev-other"],
        ["141", "F", "dev-other"],
    ]
    chapters = [line.split("|") for line in (root / "CHAPTERS.TXT").read_text().splitlines()]
    minutes = {row[0].strip(): float(row[2]) for row in chapters[1:]}
    for chapter in (root / "dev-other").glob("*/*"):
        seconds = sum(soundfile.info(path).duration for path in chapter.glob("*.flac"))
        assert minutes[chapter.name] == pytest.approx(seconds / 60, abs=0.005)


@pytest.mark.parametrize("speaker", [0, 1, 2])
def test_each_letter_has_its_tone(speaker: int) -> None:
    letter, gap = round(script.LETTER * 16000), round(script.GAP * 16000)
    waveform = script.tones(script.LETTERS + " ", speaker)
    assert len(waveform) == letter * (len(script.LETTERS) + 3) + gap * (len(script.LETTERS) + 1)
    starts = letter + (letter + gap) * np.arange(len(script.LETTERS))
    spectra = [np.abs(np.fft.rfft(waveform[start : start + letter])) for start in starts]
    peaks = np.array([np.argmax(spectrum) for spectrum in spectra]) * 16000 / letter
    # A bin is 10 Hz, the nearest letters are 44 Hz apart, speakers a fifth of that.
    assert np.diff(peaks).min() >= 30
    expected = script.LOWEST * (script.HIGHEST / script.LOWEST) ** (np.arange(27) / 26)
    assert np.abs(np.log(peaks / expected)).max() < np.log(script.HIGHEST / script.LOWEST) / 26 / 2


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is missing")
def test_spoken(tmp_path: Path) -> None:
    root = script.make_corpus(tmp_path, ["test-clean"], 1, script.speech)
    for path in root.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        assert rate == 16000
        assert 0.05 < np.abs(samples).max() < 1
