"""Measurements on this machine: speed over many files, an hour in one file, start-up time."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from asr.audio import SAMPLE_RATE, read_audio, read_blocks
from asr.config import Precision
from asr.errors import AsrError, AudioError
from asr.loading import load_model
from asr.metrics import word_error_rate
from asr.segment import segments
from asr.timing import Spread, seconds_of, wait_for
from asr.transcribe import Recognizer

#: Runs a command and writes its memory, ru_maxrss, into a file.
_SMALL = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""
_GAP = 0.5  # seconds of near silence between the parts of the long file


@dataclass(frozen=True)
class LongFile:
    """What became of one long recording, transcribed by a process of its own."""

    seconds: float  # of audio
    rtfx: float  # with the start of the process and the loading of the model
    peak_megabytes: float  # resident, of the process, without those of the search
    words: int  # of the pieces that it is cut into, transcribed one by one
    differing_words: int  # edits between the long text and that of the pieces


@dataclass(frozen=True)
class Report:
    """All measurements."""

    machine: str
    model: str
    audio: str
    help_seconds: Spread  # `asr --help`
    alone_seconds: Spread  # `asr transcribe` of the shortest recording, from start to exit
    throughput: Spread  # x real time over all files
    shares: dict[str, float]  # stage -> part of the time, one file at a time
    long_file: LongFile

    def to_json(self) -> str:
        """Everything, with full precision."""
        return json.dumps(asdict(self), indent=2)

    def summary(self) -> str:
        """A line for each measurement."""
        shares = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in self.shares.items())
        long = self.long_file
        return "\n".join(
            [
                f"machine     {self.machine}",
                f"model       {self.model}",
                f"audio       {self.audio}",
                f"many files  {self.throughput} x real time",
                f"shares      {shares}, of one file at a time",
                f"one file    {long.seconds:.0f} s: {long.rtfx:.0f} x real time, "
                f"{long.peak_megabytes:.0f} MB at most without the search processes",
                f"its text    {long.differing_words} of {long.words} words differ from its pieces'",
                f"asr --help  {self.help_seconds} s",
                f"one alone   {self.alone_seconds} s for the shortest recording, start and all",
            ]
        )


def bench(
    model: Path | None,
    files: Sequence[Path] = (),
    device: str = "cpu",
    precision: Precision = "fp32",
    *,
    repeats: int = 3,
    long_seconds: float = 3600.0,
) -> Report:
    """Measure a model directory (None: the packaged model).

    Args:
        model: the model directory.
        files: recordings of speech; without any, speech-like sound is made, which costs the
            network what speech does but has little for a beam search to follow.
        device: of the throughput and the shares; the rest is done as `asr transcribe` does.
        precision: of all.
        repeats: of each timed measurement.
        long_seconds: how long the long file is.

    Raises:
        AudioError: one of the files cannot be read.
        ModelError: there is no such model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = _parts(files, folder)
        durations = [soundfile.info(part).duration for part in parts]
        total, shortest = sum(durations), parts[durations.index(min(durations))]
        origin = "recordings" if files else "speech-like sounds made by this command"
        recognizer = load_model(model, device, precision)
        config = recognizer.packaged.config
        alone = _transcribe(model, precision, shortest)
        _consume(recognizer, parts)  # warms up
        return Report(
            machine=f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, {device}, "
            f"{precision}",
            model=f"{config.name}, {config.decode.method} search",
            audio=f"{len(parts)} {origin}, {total:.0f} s",
            help_seconds=Spread.of([_seconds(["--help"]) for _ in range(repeats)]),
            alone_seconds=Spread.of([_seconds(alone) for _ in range(repeats)]),
            throughput=Spread.of(
                [total / seconds_of(lambda: _consume(recognizer, parts)) for _ in range(repeats)]
            ),
            shares=_shares(recognizer, parts),
            long_file=_long_file(recognizer, model, parts, folder / "long.flac", long_seconds),
        )


def _transcribe(model: Path | None, precision: Precision, path: Path) -> list[str]:
    """Arguments of `asr`."""
    given = [] if model is None else ["--model", str(model)]
    return ["transcribe", str(path), "--precision", precision, *given]


def _seconds(arguments: Sequence[str]) -> float:
    """How long `asr` takes for them."""
    command = [sys.executable, "-m", "asr", *arguments]
    start = time.perf_counter()
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    elapsed = time.perf_counter() - start
    _expect_success(command, status)
    return elapsed


def _expect_success(command: Sequence[str], status: int) -> None:
    if status:
        raise AsrError(f"bench: `{' '.join(command)}` exited with {status}")


def _consume(recognizer: Recognizer, files: Sequence[Path]) -> None:
    for result in recognizer.transcribe_many(files):
        if isinstance(result, AudioError):
            raise result


def _parts(files: Sequence[Path], folder: Path) -> list[Path]:
    """16-bit 16 kHz copies, so that a part and its place in the long file are the same samples."""
    waveforms = (
        (read_audio(file).numpy() for file in files)
        if files
        else (speech_like(seconds, seed) for seed, seconds in enumerate([3.0, 6.0, 9.0, 12.0] * 8))
    )
    parts = []
    for index, waveform in enumerate(waveforms):
        parts.append(folder / f"{index:05d}.flac")
        soundfile.write(parts[-1], waveform, SAMPLE_RATE, subtype="PCM_16")
    return parts


def speech_like(seconds: float, seed: int) -> NDArray[np.float32]:
    """Voiced and hissing syllables, four a second: `[N]` float32 at 16 kHz; not intelligible."""
    rng = np.random.default_rng(seed)
    syllable = SAMPLE_RATE // 4
    time_axis = np.arange(syllable) / SAMPLE_RATE
    harmonics = np.arange(1, 25)[:, None]
    pieces = []
    for _ in range(int(seconds * 4)):
        pitch = rng.uniform(90, 220)  # Hz
        formants = rng.uniform([300, 900, 2200], [800, 2200, 3000])[:, None]  # Hz
        gains = np.exp(-(((harmonics.T * pitch - formants) / 150) ** 2)).sum(0)[:, None]
        voice = (gains * np.sin(2 * np.pi * pitch * harmonics * time_axis)).sum(0)
        hiss = rng.normal(0, 0.3, syllable) * (time_axis < rng.uniform(0, 0.1))
        pieces.append((voice + hiss) * np.hanning(syllable))
    wave = np.concatenate(pieces) + rng.normal(0, 1e-3, syllable * len(pieces))
    scaled: NDArray[np.float32] = (0.3 * wave / np.abs(wave).max()).astype(np.float32)
    return scaled


@torch.inference_mode()
def _shares(recognizer: Recognizer, files: Sequence[Path]) -> dict[str, float]:
    """Parts of the time that the stages take, one file at a time."""
    packaged = recognizer.packaged
    spent = dict.fromkeys(("reading", "features", "network", "decoding"), 0.0)
    for file in files:
        marks = [time.perf_counter()]
        waveform = read_audio(file, packaged.config.features.sample_rate).to(packaged.device)
        marks.append(time.perf_counter())
        lengths = torch.tensor([waveform.numel()], device=packaged.device)
        features, frames = packaged.filter_bank(waveform[None], lengths)
        wait_for(packaged.device)
        marks.append(time.perf_counter())
        log_probs, lengths = packaged.network(features, frames)
        wait_for(packaged.device)
        marks.append(time.perf_counter())
        recognizer.decoder(log_probs, lengths)
        marks.append(time.perf_counter())
        for stage, start, end in zip(spent, marks, marks[1:], strict=False):
            spent[stage] += end - start
    total = sum(spent.values())
    return {stage: seconds / total for stage, seconds in spent.items()}


def _long_file(
    recognizer: Recognizer, model: Path | None, parts: Sequence[Path], path: Path, seconds: float
) -> LongFile:
    """Transcribe the parts, over and over until `seconds` are full, as one file."""
    samples = 0
    gap = np.random.default_rng(0).normal(0, 1e-4, int(_GAP * SAMPLE_RATE))
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as file:
        for part in itertools.cycle(parts):
            waveform = np.concatenate([soundfile.read(part)[0], gap])
            file.write(waveform)
            samples += len(waveform)
            if samples >= seconds * SAMPLE_RATE:
                break
    precision = recognizer.packaged.precision
    command = [sys.executable, "-m", "asr", *_transcribe(model, precision, path)]
    output = path.with_suffix(".txt")
    start = time.perf_counter()
    peak = peak_megabytes(command, output)
    elapsed = time.perf_counter() - start
    pieces = segments(read_blocks(path, recognizer.sample_rate), recognizer.sample_rate)
    texts = [recognizer.transcribe_waveform(piece.waveform).text for piece in pieces]
    score = word_error_rate([" ".join(texts)], [output.read_text(encoding="utf-8")])
    return LongFile(
        seconds=samples / SAMPLE_RATE,
        rtfx=samples / SAMPLE_RATE / elapsed,
        peak_megabytes=peak,
        words=score.reference_length,
        differing_words=score.errors,
    )


def peak_megabytes(command: Sequence[str], output: Path) -> float:
    """Run `command`, its standard output to a file; the memory it had at most, resident.

    It is started by a small process: a child of this one would be counted with this one's peak.

    Raises:
        AsrError: it failed.
    """
    peak = output.with_suffix(".peak")
    with output.open("wb") as stdout:
        small = [sys.executable, "-c", _SMALL, str(peak), *command]
        _expect_success(command, subprocess.call(small, stdout=stdout))
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return int(peak.read_text()) * bytes_per_unit / 1e6
