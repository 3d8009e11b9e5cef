import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.bench import bench, peak_megabytes, speech_like
from asr.errors import AsrError, AudioError


def test_speech_like_sound_is_loud_enough_and_reproducible() -> None:
    wave = speech_like(2.0, seed=3)
    assert wave.shape == (32000,)
    assert wave.dtype == np.float32
    assert np.abs(wave).max() == pytest.approx(0.3)
    assert 0.01 < np.sqrt(np.mean(wave**2)) < 0.2
    np.testing.assert_array_equal(wave, speech_like(2.0, seed=3))
    assert np.abs(wave - speech_like(2.0, seed=4)).max() > 0.1


def test_the_memory_of_a_command_is_its_own(tmp_path: Path) -> None:
    """Torch is in this process, and takes more."""
    command = [sys.executable, "-c", "x = b'x' * 50_000_000; print('said')"]
    assert 50 < peak_megabytes(command, tmp_path / "out.txt") < 120
    assert (tmp_path / "out.txt").read_text() == "said\n"
    with pytest.raises(AsrError):
        peak_megabytes([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "out.txt")


@pytest.mark.slow
def test_report_of_a_small_model(tiny_model: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for seed, file in enumerate(files):
        soundfile.write(file, speech_like(1.0, seed), 16000)
    report = bench(tiny_model, files, precision="bf16", repeats=2, long_seconds=4.0)

    assert sum(report.shares.values()) == pytest.approx(1)
    assert report.throughput.lowest <= report.throughput.median <= report.throughput.highest
    # Parts of 1 s and gaps of 0.5 s, until 4 s are full.
    assert report.long_file.seconds == pytest.approx(4.5)
    assert 100 < report.long_file.peak_megabytes < 4000
    assert report.machine.endswith("cpu, bf16")
    assert report.audio == "2 recordings, 2 s"
    assert json.loads(report.to_json())["model"] == "tiny, greedy search"
    assert report.help_seconds.lowest < report.alone_seconds.lowest  # which imports torch
    assert "asr --help" in report.summary()


def test_a_file_that_is_not_audio_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"absent\.wav"):
        bench(tiny_model, [tmp_path / "absent.wav"])
