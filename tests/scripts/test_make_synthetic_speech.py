"""Synthetic speech: what its parts do to a waveform, and that a seed means one corpus."""

import lzma
import shutil
import sys
from itertools import islice
from pathlib import Path

import make_synthetic_speech as script
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr.data import read_manifest
from asr.errors import DataError
from asr.text import normalize

SENTENCES = ["the river was wide", "Chapter XII was long", "he had 3 dogs", "nobody's fault but"]
needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is missing")


def level(waveform: np.ndarray) -> float:
    """Power in dB."""
    return float(10 * np.log10(np.mean(waveform**2)))


def speech_like(seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    return 0.3 * np.sin(2 * np.pi * 200 * time)


@given(st.integers(0, 2**32))
def test_noise_is_within_its_bounds(seed: int) -> None:
    speech = speech_like()
    noise = script.add_noise(speech, np.random.default_rng(seed)) - speech
    assert 8 - 1e-6 <= level(speech) - level(noise) <= 40 + 1e-6


@given(st.integers(0, 2**32))
def test_a_room_follows_its_source(seed: int) -> None:
    click = np.zeros(16000)
    click[4000] = 1.0
    room = script.reverberate(click, np.random.default_rng(seed))
    assert room.shape == click.shape
    np.testing.assert_allclose(room[:4000], 0, atol=1e-12)
    assert np.argmax(np.abs(room)) == 4000  # the direct sound is the loudest
    tail = room[4001:]
    assert 2 < -10 * np.log10(np.sum(tail**2)) < 21  # 3 to 20 dB, and the click's own share
    assert np.sum(tail[:800] ** 2) > np.sum(tail[-800:] ** 2)  # it decays


def test_everyday_sentences_are_varied_and_normal() -> None:
    said = [script.everyday(np.random.default_rng(i)) for i in range(200)]
    assert len(set(said)) > 100
    assert all(text == normalize(text) for text in said)


def test_what_cannot_be_read_aloud_as_written_is_left_out() -> None:
    texts = list(script.plan(SENTENCES, 0.0, 1, endless=False))
    assert sorted(texts) == ["NOBODY'S FAULT BUT", "THE RIVER WAS WIDE"]
    assert list(islice(script.plan(SENTENCES, 0.0, 1, endless=True), 9))[0:2] == texts
    many = list(islice(script.plan(SENTENCES, 0.25, 1, endless=True), 1000))
    # 1000 draws of 1 in 4: standard deviation 13.7, six of them either way
    assert abs(sum(text not in texts for text in many) - 250) < 83
    with pytest.raises(DataError, match="found none"):
        list(script.plan(["3 dogs"], 0.0, 1, endless=True))


@pytest.mark.parametrize("word", ["ILL", "MIX", "I", "DID", "LIVID", "VIVID"])
def test_words_that_look_like_roman_numerals_stay(word: str) -> None:
    assert list(script.plan([f"so {word} it was"], 0.0, 1, endless=False))


@pytest.mark.parametrize("name", ["text.txt", "text.txt.xz"])
def test_sentences_are_chosen_by_length(name: str, tmp_path: Path) -> None:
    text = "one two\none two three\none two three four\n"
    data = text.encode()
    (tmp_path / name).write_bytes(lzma.compress(data) if name.endswith("xz") else data)
    assert script.read_sentences(tmp_path / name, 3, 3) == ["one two three\n"]
    with pytest.raises(DataError, match="cannot read sentences"):
        script.read_sentences(tmp_path / "absent.txt", 3, 3)


def test_a_packed_text_that_broke_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.xz"
    path.write_bytes(lzma.compress(b"one two three\n" * 99)[:-20])
    with pytest.raises(DataError, match="cannot read sentences"):
        script.read_sentences(path, 3, 3)


@needs_espeak
def test_the_same_seed_is_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, jobs, seed in (("a", "1", "3"), ("b", "2", "3"), ("c", "2", "4")):
        command = ["make", "--sentence", "the river was wide", "--hours", "0.001"]
        command += ["--out", str(tmp_path / out), "--jobs", jobs, "--seed", seed]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(script, "_CHUNK", 2)
        script.main()
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) >= 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "utterances.tsv").read_text() != (
        tmp_path / "c" / "utterances.tsv"
    ).read_text()
    found = read_manifest(tmp_path / "a" / "utterances.tsv")
    assert sum(u.seconds for u in found[:-1]) < 3.6 <= sum(u.seconds for u in found)
    for u in found:
        samples, rate = soundfile.read(u.audio)
        assert rate == 16000
        assert u.seconds == pytest.approx(len(samples) / rate, abs=5e-4)  # written in ms
        assert 10 ** (-25 / 20) - 1e-3 <= np.abs(samples).max() <= 10 ** (-1 / 20) + 1e-3


@needs_espeak
def test_opus(tmp_path: Path) -> None:
    count, _ = script.make(iter(["YES"]), tmp_path, None, 1, 1, "opus")
    assert count == 1
    assert soundfile.info(tmp_path / "audio" / "000001.opus").subtype == "OPUS"


def test_without_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get install espeak-ng"):
        script.make(iter(["YES"]), tmp_path, None, 1, 1, "flac")


@needs_espeak
def test_a_voice_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"espeak-ng: .*voice"):
        script.speak("yes", "xx-none")
