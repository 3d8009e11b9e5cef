"""Audio files -> mono waveforms, whole or block by block.

soundfile (libsndfile) decodes WAV, FLAC, MP3 and Ogg; what it does not know (m4a, mp4, webm)
goes through PyAV (FFmpeg). A file that ends before its own header, page flags or container say
it should is an error, never a shorter waveform; one joined from several is read to the last.
"""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from torch import Tensor

from asr.containers import check_last_ogg_page, is_chained_ogg, mp3_parts
from asr.errors import AudioError

SAMPLE_RATE = 16000

_BLOCK_SAMPLES = 1 << 20  # of all channels together: 4 MB, a minute of 16 kHz mono
_RATES = range(1000, 768_001)  # Hz; outside, the header is damaged
_CANCELLED = 1e-3  # of a channel's power is left: one wire is the other's negative
_PEAK = 8.0  # lossy codecs overshoot 1 a little; far above it the samples are not normalised
_MP3_FRAME = 1152  # some encoders count their header as a frame of speech
_AV_SLACK = 0.1  # seconds a container may promise and not hold: encoder priming and padding
_STREAMED = (0x7FFFF000, 0xFFFFF000)  # lengths from here to the word's end: "not known yet"
# Lines of libsndfile's log about the chunk that holds the samples, in RIFF, W64, RF64, AU, AIFF.
_SHORT_CHUNK = re.compile(
    r"(?:data|riff|Riff size|Data Size|SSND|BODY)\s*: (\d+) \(should be (\d+)\)"
)
_MOST_METADATA = 1 << 14  # bytes of a WAV without samples
# What soundfile does not open; TypeError: it wants to be told what is in any NAME.raw.
_UNKNOWN = (soundfile.LibsndfileError, TypeError)
# What FFmpeg may take a file for. Others would open further files (playlists) or see sound in text.
_AV_FORMATS = (
    "mov,matroska,asf,aac,mp3,mp2,ogg,flac,wav,w64,aiff,au,caf,amr,amrnb,amrwb,ac3,eac3,"
    "avi,flv,mpeg,mpegts,ape,wv,tta,dsf,rm"
)
_AV_TIMED = ("mov", "matroska", "asf")  # containers that store a duration; others estimate it


class AudioInfo(NamedTuple):
    """What the header of an audio file says."""

    seconds: float
    sample_rate: int  # Hz
    channels: int


def read_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Decode a whole file to the mean of its channels, or to the first where they cancel out.

    Args:
        path: WAV, FLAC, MP3, Ogg Vorbis/Opus, or anything else FFmpeg decodes; any rate, channels.
        sample_rate: of the result, in Hz; `torchaudio.functional.resample` with its defaults.

    Returns:
        `[N]` float32; full scale is 1 (overshoot of lossy codecs and of resampling is kept).

    Raises:
        AudioError: missing, empty, truncated or damaged file, not audio, NaN or infinite samples.
    """
    blocks = list(read_blocks(path, sample_rate))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def read_blocks(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Iterator[Tensor]:
    """Decode a file block by block, in memory that does not depend on its length.

    Yields:
        `[n]` float32, n > 0; joined they are `read_audio(path, sample_rate)`.

    Raises:
        AudioError: as `read_audio`; for damage inside the file, after the blocks before it.
    """
    path = Path(path)
    _check_regular(path)
    samples = 0
    for block in _resample(_checked(path, _decode(path)), sample_rate):
        samples += len(block)
        if len(block):
            yield block
    if samples == 0:
        raise AudioError(f"{path}: holds no audio samples")


def audio_info(path: str | Path) -> AudioInfo:
    """Duration, rate and channels from a file's header, without decoding it.

    Raises:
        AudioError: missing or empty file, not audio, or a container that does not say its length.
    """
    path = Path(path)
    _check_regular(path)
    try:
        info = soundfile.info(_name(path))
    except _UNKNOWN:
        with _open_av(path) as container:
            stream = _audio_stream(path, container)
            seconds = _promised_seconds(container, stream)
            rate, channels = stream.rate, stream.channels
    else:
        if (info.format == "OGG" and is_chained_ogg(path)) or (_is_mp3(info) and mp3_parts(path)):
            raise AudioError(f"{path}: several recordings in a row; convert it to FLAC")
        seconds = None if _is_unclosed_wav(path, info) else info.frames / info.samplerate
        rate, channels = info.samplerate, info.channels
    if seconds is None:
        raise AudioError(f"{path}: its header does not say how long it is; convert it to FLAC")
    return AudioInfo(seconds, rate, channels)


def _check_regular(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"{path}: a folder; give the files in it")
        if str(path) == "-" and not path.exists():
            raise AudioError(
                "-: the standard input is not read; write what comes from it to a file"
            )
        size = path.stat().st_size
        if not path.is_file():
            raise AudioError(f"{path}: not a regular file; write what comes from it to one")
        with path.open("rb"):  # FFmpeg would say that what may not be read is not audio
            pass
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if size == 0:
        raise AudioError(f"{path}: empty file")


def _name(path: Path) -> bytes:
    """For libsndfile: names need not be UTF-8, and its "-" would be the standard input."""
    return os.fsencode(path.absolute())


def _decode(path: Path) -> Iterator[tuple[Tensor, int]]:
    """Mono blocks at the file's own rate: (`[n]` float32, Hz)."""
    try:
        file = soundfile.SoundFile(_name(path))
    except _UNKNOWN:
        yield from _decode_av(path)
        return
    with file:
        if file.format == "OGG" and is_chained_ogg(path):
            check_last_ogg_page(path)
            yield from _decode_av(path)
        elif _is_mp3(file) and (parts := mp3_parts(path)):
            for part in parts:
                yield from _decode_bytes(path, _part(path, part))
        elif _is_unclosed_wav(path, file):
            yield from _decode_bytes(path, _length_left_open(path.read_bytes()))
        else:
            yield from _decode_soundfile(path, file)


def _decode_bytes(path: Path, data: bytes) -> Iterator[tuple[Tensor, int]]:
    try:
        recording = soundfile.SoundFile(BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: damaged: {error.error_string}") from None
    with recording:
        yield from _decode_soundfile(path, recording)


def _part(path: Path, part: range) -> bytes:
    with path.open("rb") as whole:
        whole.seek(part.start)
        return whole.read(len(part))


def _is_unclosed_wav(path: Path, file: Any) -> bool:
    """Whether samples follow, though the header has none: their recorder was killed."""
    is_wav = file.format in ("WAV", "WAVEX")
    return is_wav and file.frames == 0 and path.stat().st_size > _MOST_METADATA


def _length_left_open(wav: bytes) -> bytes:
    """The same file with samples up to its end."""
    place = wav.index(b"data", 12) + 4
    return wav[:place] + b"\xff" * 4 + wav[place + 4 :]


def _is_mp3(file: Any) -> bool:
    return "MPEG" in file.subtype


def _decode_soundfile(path: Path, file: Any) -> Iterator[tuple[Tensor, int]]:
    _check_complete(path, file)
    frames = 0
    while True:
        try:
            block = file.read(_BLOCK_SAMPLES // file.channels, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path}: truncated or damaged: {error.error_string}") from None
        if len(block) == 0:
            break
        frames += len(block)
        yield _mean(torch.from_numpy(block).T), file.samplerate
    slack = _MP3_FRAME if _is_mp3(file) else 0
    if frames + slack < file.frames < 1 << 62:  # beyond: libsndfile's "not known"
        raise AudioError(
            f"{path}: truncated: its header promises {file.frames} frames, {frames} came"
        )


def _check_complete(path: Path, file: Any) -> None:
    """Find the truncations that libsndfile repairs in silence."""
    if file.format == "OGG":
        check_last_ogg_page(path)
    short = _SHORT_CHUNK.search(file.extra_info)
    if short is None:
        return
    promised, came = int(short[1]), int(short[2])
    streamed = any(start <= promised < start + 0x1000 for start in _STREAMED)
    if came < promised and not streamed:
        raise AudioError(f"{path}: truncated: its header promises {promised} bytes, {came} came")


def _open_av(path: Path) -> Any:
    import av  # 0.1 s that most files do not need

    try:
        return av.open(f"file:{path}", options={"format_whitelist": _AV_FORMATS})
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{path}: not audio, truncated or damaged: {_reason(error)}") from None


def _audio_stream(path: Path, container: Any) -> Any:
    if not container.streams.audio:
        raise AudioError(f"{path}: holds no audio stream")
    return container.streams.audio[0]


def _promised_seconds(container: Any, stream: Any) -> float | None:
    if not container.format.name.startswith(_AV_TIMED):
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration / 1_000_000)  # FFmpeg's AV_TIME_BASE
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decode_av(path: Path) -> Iterator[tuple[Tensor, int]]:
    import av

    with _open_av(path) as container:
        stream = _audio_stream(path, container)
        promised = _promised_seconds(container, stream)
        pending: list[Tensor] = []
        converter, pending_samples, seconds = None, 0, 0.0
        whole = ((container.start_time or 0) + (container.duration or 0)) / 1_000_000
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise AudioError(f"{path}: truncated or damaged after {seconds:.1f} s")
                for frame in packet.decode():
                    if converter is None:
                        rate = frame.sample_rate
                        # Interleaved: PyAV reads outside of frames with more than 8 planes.
                        converter = av.AudioResampler("flt", frame.layout, rate)
                    # What begins late or has gaps keeps its times: silence takes their place.
                    place = 0.0 if promised is None else frame.time or 0.0
                    if seconds + _AV_SLACK < place < whole:
                        yield from _silence(pending, round((place - seconds) * rate), rate)
                        pending, pending_samples, seconds = [], 0, place
                    for converted in converter.resample(frame):
                        samples = torch.from_numpy(converted.to_ndarray())  # [1, n * C]
                        mono = _mean(samples.view(-1, converted.layout.nb_channels).T)
                        pending.append(mono)
                        pending_samples += len(mono)
                        seconds += len(mono) / rate
                if pending_samples >= _BLOCK_SAMPLES:
                    yield torch.cat(pending), rate
                    pending, pending_samples = [], 0
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"{path}: truncated or damaged: {_reason(error)}") from None
        if seconds == 0:
            raise AudioError(f"{path}: not audio: no samples in it")
        if pending:
            yield torch.cat(pending), rate
        if promised is not None and seconds + _AV_SLACK < promised:
            raise AudioError(
                f"{path}: truncated: its header promises {promised:.2f} s, {seconds:.2f} s came"
            )


def _silence(before: list[Tensor], samples: int, rate: int) -> Iterator[tuple[Tensor, int]]:
    """What is pending, and so many samples of 0 after it, in blocks."""
    for block in before:
        yield block, rate
    for first in range(0, samples, _BLOCK_SAMPLES):
        yield torch.zeros(min(_BLOCK_SAMPLES, samples - first)), rate


def _mean(channels: Tensor) -> Tensor:
    """`[C, n]` -> `[n]`; where the channels cancel each other, the first of them.

    Adding whole channels is six times faster than `Tensor.mean` of pairs.
    """
    first = channels[0]
    if len(channels) == 1:
        return first
    mono = first + channels[1]
    for channel in channels[2:]:
        mono += channel
    mono /= len(channels)
    return first if mono.dot(mono) < _CANCELLED * first.dot(first) else mono


def _checked(path: Path, blocks: Iterator[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, int]]:
    for block, rate in blocks:
        if rate not in _RATES:
            raise AudioError(f"{path}: damaged: a sample rate of {rate} Hz")
        check_level(path, block)
        yield block, rate


def check_level(source: object, samples: Tensor) -> None:
    """Refuse samples [n] that are no sound with a full scale of 1; `source` is their name.

    Raises:
        AudioError: NaN, infinite, or far above 1, as whole numbers are that were not scaled.
    """
    if not len(samples):
        return
    low, high = samples.aminmax()
    peak = max(-float(low), float(high))
    if not peak <= _PEAK:  # true for NaN as well
        raise AudioError(f"{source}: samples reach {peak:g}, expected finite numbers in [-1, 1]")


@lru_cache(maxsize=8)
def _resampler(old: int, new: int) -> Any:
    import torchaudio  # most corpora need no resampling

    return torchaudio.transforms.Resample(old, new)


def _resample(blocks: Iterator[tuple[Tensor, int]], sample_rate: int) -> Iterator[Tensor]:
    """Resample blocks so that, joined, they are the whole waveform resampled at once.

    Ratios of rates without a common divisor are rounded to a denominator of 2000 (the kernel
    grows with its square): a drift below 0.3 s an hour.
    """
    for rate, alike in groupby(blocks, itemgetter(1)):
        ratio = Fraction(rate, sample_rate).limit_denominator(2000)
        waveforms = (block for block, _ in alike)
        yield from waveforms if ratio == 1 else _resample_by(ratio, waveforms)


def _resample_by(ratio: Fraction, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """A block is resampled with the samples around it that its filter sees, their output cut off.

    `ratio` is the old rate to the new one.
    """
    old, new = ratio.numerator, ratio.denominator
    reach = ceil(6 / 0.99 * old / min(old, new)) + old  # of torchaudio's default filter
    margin = ceil(reach / old) * old
    held = torch.empty(0)  # context on the left, then samples whose right context is to come
    context = 0  # samples of `held` that are already resampled
    for block in blocks:
        held = torch.cat([held, block])
        ready = (len(held) - context - margin) // old * old
        if ready > 0:
            output = _resampler(old, new)(held[: context + ready + margin])
            yield output[context // old * new : (context + ready) // old * new]
            kept = min(margin, context + ready)
            held, context = held[context + ready - kept :], kept
    if len(held):
        yield _resampler(old, new)(held)[context // old * new :]
