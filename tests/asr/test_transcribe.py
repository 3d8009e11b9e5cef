import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import asr.transcribe
from asr.config import Config
from asr.decode import GreedyDecoder
from asr.errors import AudioError, ConfigError, DataError, ModelError
from asr.loading import load_model
from asr.transcribe import Recognizer, Transcript, Word
from asr.word_search import Hypothesis

RATE = 16000
FRAME = 640  # samples of the stub's output frame: 40 ms
UNITS = ("<blk>", "▁A", "▁B", "▁C")
LEVEL = 0.1
SURE = 0.9  # posterior of what the stub hears


class Letters:
    """A tokenizer whose every unit is a word of one letter."""

    units = UNITS

    def decode(self, ids: Any) -> str:
        return " ".join(UNITS[unit][1:] for unit in ids)


@dataclass(frozen=True)
class Echo:
    """A model that hears unit k in a frame of samples of the level k / 10."""

    config = Config(name="echo")
    device = "cpu"
    seconds_per_frame = FRAME / RATE
    filter_bank = SimpleNamespace(size=400)

    def emissions(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = -(-lengths // FRAME)
        waveforms = torch.nn.functional.pad(waveforms, (0, FRAME))
        units = (waveforms.abs().unfold(1, FRAME, FRAME).amax(-1) / LEVEL).round().long()
        posterior = torch.full((*units.shape, len(UNITS)), (1 - SURE) / (len(UNITS) - 1))
        return posterior.scatter(-1, units[..., None], SURE).log(), frames


def recognizer(batch_seconds: float = 60.0) -> Recognizer:
    decoder = GreedyDecoder(cast(Any, Letters()))
    return Recognizer(cast(Any, Echo()), decoder, batch_seconds=batch_seconds)


def say(text: str) -> tuple[np.ndarray[Any, Any], list[tuple[float, float]]]:
    """Samples, each letter 0.4 s and each space 0.6 s long, and when each letter is heard."""
    pieces, times, now = [], [], 0.0
    for letter in text:
        level, seconds = (0.0, 0.6) if letter == " " else (LEVEL * UNITS.index("▁" + letter), 0.4)
        pieces.append(np.full(round(seconds * RATE), level, np.float32))
        if letter != " ":
            times.append((now, now + seconds))
        now += seconds
    samples = np.concatenate(pieces)
    samples[::2] *= -1
    return samples, times


def record(folder: Path, text: str) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.wav"
    soundfile.write(path, say(text)[0], RATE, subtype="FLOAT")
    return path


def letters(count: int, seed: int) -> str:
    """So many letters with spaces between them."""
    return " ".join(np.random.default_rng(seed).choice(list("ABC"), count))


def words_of(result: Transcript | AudioError) -> list[str]:
    assert isinstance(result, Transcript)
    assert result.text == " ".join(word.text for word in result.words)
    return [word.text for word in result.words]


def test_words_have_times_and_confidence(tmp_path: Path) -> None:
    path = record(tmp_path, "A B C")
    result = recognizer().transcribe(path)
    assert result.file == str(path)
    assert result.text == "A B C"
    assert result.duration == pytest.approx(2.4)
    for word, (start, end) in zip(result.words, say("A B C")[1], strict=True):
        assert (word.start, word.end) == (pytest.approx(start), pytest.approx(end))
        assert word.confidence == pytest.approx(SURE)


@pytest.mark.parametrize("batch_seconds", [0.01, 30.0, 1000.0])
@pytest.mark.parametrize("ahead", [1, 16])
@pytest.mark.parametrize("pool", [1, 8])
def test_many_files_come_in_order_whatever_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_seconds: float, ahead: int, pool: int
) -> None:
    monkeypatch.setattr(asr.transcribe, "_READ_AHEAD", ahead)
    monkeypatch.setattr(asr.transcribe, "_POOL_BATCHES", pool)
    texts = [letters(count, seed) for seed, count in enumerate([3, 70, 1, 10, 2, 30, 5, 4])]
    paths = [record(tmp_path, text) for text in texts]
    results = list(recognizer(batch_seconds).transcribe_many(paths))
    assert [" ".join(words_of(result)) for result in results] == texts
    assert [cast(Transcript, result).file for result in results] == [str(path) for path in paths]


@pytest.mark.parametrize(("threads", "expected"), [(1, [4]), (2, [2, 2])])
def test_a_small_pool_is_shared_by_the_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, expected: list[int]
) -> None:
    emissions, sizes, inherited = Echo.emissions, [], torch.get_num_threads()

    def watched(self: Echo, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(waveforms))
        return emissions(self, waveforms, lengths)

    monkeypatch.setattr(Echo, "emissions", watched)
    paths = [record(tmp_path, "A B C") for _ in range(4)]
    torch.set_num_threads(threads)
    try:
        results = list(recognizer().transcribe_many(paths))
    finally:
        torch.set_num_threads(inherited)
    assert [words_of(result) for result in results] == [["A", "B", "C"]] * 4
    assert sizes == expected


def test_a_long_recording_is_its_parts(tmp_path: Path) -> None:
    text = letters(120, seed=1)
    result = recognizer().transcribe(record(tmp_path, text))
    assert result.duration > 100
    assert result.text == text
    for word, (start, end) in zip(result.words, say(text)[1], strict=True):
        # Cuts fall on multiples of 10 ms, so that a frame of 40 ms may start within a word.
        assert word.start == pytest.approx(start, abs=0.04)
        assert word.end == pytest.approx(end, abs=0.04)


def test_what_cannot_be_read_fails_in_its_place(tmp_path: Path) -> None:
    good = record(tmp_path, "A B")
    long = tmp_path / "long.flac"
    soundfile.write(long, say(letters(100, seed=0))[0], RATE)
    truncated = tmp_path / "truncated.flac"
    truncated.write_bytes(long.read_bytes()[: int(0.8 * long.stat().st_size)])
    absent = tmp_path / "absent.wav"
    results = list(recognizer().transcribe_many([absent, good, truncated, good, absent]))
    assert [isinstance(result, AudioError) for result in results] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert [str(path) in str(r) for path, r in zip([absent, truncated], results[::2], strict=False)]
    assert words_of(results[1]) == words_of(results[3]) == ["A", "B"]
    with pytest.raises(AudioError, match=r"absent\.wav: No such file"):
        recognizer().transcribe(absent)


def test_nothing_said_is_no_words(tmp_path: Path) -> None:
    silences = [1, 399, 400, 30 * RATE]
    paths = [tmp_path / f"{samples}.wav" for samples in silences]
    for path, samples in zip(paths, silences, strict=True):
        soundfile.write(path, np.zeros(samples), RATE)
    for result, samples in zip(recognizer().transcribe_many(paths), silences, strict=True):
        assert words_of(result) == []
        assert cast(Transcript, result).duration == samples / RATE
    assert list(recognizer().transcribe_many([])) == []


def test_only_so_much_is_read_ahead(tmp_path: Path) -> None:
    endless = itertools.repeat(record(tmp_path, letters(20, seed=0)))
    results = recognizer().transcribe_many(endless)
    assert [len(words_of(result)) for result in itertools.islice(results, 3)] == [20] * 3
    cast(Any, results).close()
    own = ("asr-read", "asr-pool")  # others are those of all calls
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(own)]


def test_nobody_else_loses_threads_of_torch() -> None:
    """What a thread is told about torch's threads, others inherit; see asr/threads.py."""
    inherited = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        hears = recognizer()
        hears.transcribe_waveform(say("A")[0])
        seen = []

        def ask() -> None:
            hears.transcribe_waveform(say("A B")[0])
            seen.append(torch.get_num_threads())

        callers = [threading.Thread(target=ask) for _ in range(20)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert seen == [3] * 20
    finally:
        torch.set_num_threads(inherited)


def test_a_failing_network_or_search_is_not_swallowed(tmp_path: Path) -> None:
    def broken(log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
        raise RuntimeError("no words today")

    with pytest.raises(RuntimeError, match="no words today"):
        Recognizer(cast(Any, Echo()), broken).transcribe(record(tmp_path, "A"))


def test_waveforms(tmp_path: Path) -> None:
    path = record(tmp_path, "C A")
    samples = torch.from_numpy(say("C A")[0])
    result = recognizer().transcribe_waveform(samples)
    assert result == replace(recognizer().transcribe(path), file="")
    assert recognizer().transcribe_waveform(torch.zeros(0)) == Transcript("", "", 0.0, ())
    backwards = samples.numpy()[::-1].copy()[::-1]  # strides below 0
    for array in samples.numpy(), samples.numpy().astype(">f8"), backwards:
        assert recognizer().transcribe_waveform(array) == result
    integers = (samples * 100).int()
    for wrong in (
        samples[None],
        integers,
        integers.numpy(),
        samples * np.nan,
        samples * 32768,
        None,
    ):
        with pytest.raises(AudioError, match="expected"):
            recognizer().transcribe_waveform(wrong)


def test_one_path_is_not_taken_for_its_letters() -> None:
    with pytest.raises(ValueError, match=r"expected paths, got 'a\.wav' alone"):
        recognizer().transcribe_many("a.wav")


def test_samples_are_not_taken_for_a_path() -> None:
    with pytest.raises(ValueError, match=r"expected a path, got Tensor; .* transcribe_waveform"):
        recognizer().transcribe(torch.zeros(16000))  # type: ignore[arg-type]


def test_a_name_that_is_no_text_is_printed(tiny_model: Path, tmp_path: Path) -> None:
    path = record(tmp_path, "A B")
    path = path.rename(tmp_path / os.fsdecode(b"\xff\xc3\xa9.wav"))
    command = [sys.executable, "-m", "asr", "transcribe", "--model", tiny_model, path, path]
    text = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    assert len(text) == 2
    assert b"/\\udcff\xc3\xa9.wav: " in text[0]
    for encoding in ("utf-8", "ascii"):
        listed = subprocess.run(
            [*command, "--format", "json"],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        ).stdout
        assert json.loads(listed.splitlines()[0])["file"] == str(path)


def test_json() -> None:
    words = (Word("HI", 0.12345, 0.5, 0.98765),)
    values = json.loads(json.dumps(Transcript("a.wav", "HI", 1.23456, words).to_dict()))
    assert values == {
        "file": "a.wav",
        "text": "HI",
        "duration": 1.235,
        "words": [{"text": "HI", "start": 0.123, "end": 0.5, "confidence": 0.988}],
    }


def test_a_real_network_hears_the_same_alone_and_among_others(
    tiny_model: Path, tmp_path: Path
) -> None:
    paths = [record(tmp_path, letters(count, seed=count)) for count in (1, 2, 30, 5, 9)]
    real = load_model(tiny_model, "cpu")
    for path, among in zip(paths, real.transcribe_many(paths), strict=True):
        alone = real.transcribe(path)
        assert isinstance(among, Transcript)
        assert alone.text
        assert [replace(word, confidence=0) for word in among.words] == [
            replace(word, confidence=0) for word in alone.words
        ]
        for word, same in zip(among.words, alone.words, strict=True):
            assert word.confidence == pytest.approx(same.confidence, abs=1e-5)
            assert 0 <= word.start <= word.end <= alone.duration


def test_loading_says_what_is_wrong(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        load_model(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"decode\.method"):
        load_model(tiny_model, "cpu", method="magic")
    with pytest.raises(ConfigError, match=r"decode\.beam_size"):
        load_model(tiny_model, "cpu", beam_size=0)
    with pytest.raises(ConfigError, match="'beam' with lm_weight, beam_size, got 'greedy'"):
        load_model(tiny_model, "cpu", lm_weight=1.0, beam_size=10)
    with pytest.raises(ConfigError, match=r"device: expected .*cpu on this machine, got 'gpu'"):
        load_model(tiny_model, "gpu")
    with pytest.raises(DataError, match="absent: no such language model"):
        load_model(tiny_model, "cpu", language_model=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("no file", AudioError),
        ("no path", ValueError),
        ("no network", RuntimeError),
        ("no words", RuntimeError),
    ],
)
def test_an_error_does_not_keep_the_recogniser(
    tmp_path: Path, fault: str, error: type[Exception]
) -> None:
    """Its search has processes, which would stay until garbage is next collected."""

    def fail(*_: Tensor) -> list[Hypothesis]:
        raise RuntimeError(fault)

    hearing = recognizer()
    if fault == "no words":
        hearing.decoder = fail
    if fault == "no network":
        hearing.packaged = cast(Any, SimpleNamespace(**vars(Echo) | {"emissions": fail}))
    paths = {"no file": tmp_path / "none.wav", "no path": cast(Any, 3)}
    remembered = weakref.ref(hearing)
    gc.disable()
    try:
        try:  # pytest.raises would hold the error
            hearing.transcribe(paths.get(fault, record(tmp_path, "A")))
        except error:
            failed = True
        del hearing
        assert failed
        assert remembered() is None
    finally:
        gc.enable()
