import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import asr.audio
from asr.audio import audio_info, read_audio, read_blocks
from asr.containers import mp3_parts
from asr.errors import AudioError

RATE = 16000
SECONDS = 2.0
Samples = NDArray[np.float32]


def sound(seconds: float = SECONDS, rate: int = RATE, channels: int = 1) -> Samples:
    """A warbling tone with a little noise, another pitch on each channel: [n, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 300.0 * (1 + np.arange(channels))
    warble = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)
    noise = np.random.default_rng(0).normal(0, 0.01, (len(time), channels))
    tone = 0.4 * warble[:, None] * np.sin(2 * np.pi * pitch * time[:, None]) + noise
    return tone.astype(np.float32)


def encode(path: Path, codec: str, rate: int = RATE, *, late: float = 0.0, **options: str) -> None:
    """Write `sound()` through FFmpeg, from `late` seconds on; `options` are the container's."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound().T.copy(), format="fltp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            if late:
                part.pts = (part.pts or 0) + round(late / part.time_base)
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


WRITERS: dict[str, Callable[[Path], None]] = {
    "pcm.wav": lambda path: soundfile.write(path, sound(), RATE),
    "float.wav": lambda path: soundfile.write(path, sound(), RATE, subtype="FLOAT"),
    "a.flac": lambda path: soundfile.write(path, sound(), RATE),
    "a.mp3": lambda path: soundfile.write(path, sound(), RATE),
    "vorbis.ogg": lambda path: soundfile.write(path, sound(), RATE),
    "a.opus": lambda path: soundfile.write(path, sound(), RATE, format="OGG", subtype="OPUS"),
    "a.aiff": lambda path: soundfile.write(path, sound(), RATE),
    "a.au": lambda path: soundfile.write(path, sound(), RATE),
    "a.w64": lambda path: soundfile.write(path, sound(), RATE),
    "a.m4a": lambda path: encode(path, "aac"),
    "index-first.mp4": lambda path: encode(path, "aac", movflags="+faststart"),
    "a.webm": lambda path: encode(path, "libopus", rate=48000),
}
# These say nowhere how long they are: they must be read, and cannot promise what is cut off.
UNSIZED: dict[str, Callable[[Path], None]] = {
    "no-length.mp3": lambda path: encode(path, "libmp3lame", write_xing="0"),
    "raw.aac": lambda path: encode(path, "aac"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("audio")
    for name, write in (WRITERS | UNSIZED).items():
        write(folder / name)
    return {name: folder / name for name in WRITERS | UNSIZED}


def reason(path: Path) -> str:
    """The message for a file that cannot be read: one line, which names it."""
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def outcome(path: Path) -> Tensor | AudioError:
    try:
        return read_audio(path)
    except AudioError as error:
        return error


@pytest.mark.parametrize("name", WRITERS | UNSIZED)
def test_every_format_is_read_whole(files: dict[str, Path], name: str) -> None:
    waveform = read_audio(files[name])
    assert waveform.dtype == torch.float32
    # Some containers keep the encoder's priming and padding: up to three frames of 1152 samples.
    assert 0 <= len(waveform) - SECONDS * RATE <= 3 * 1152
    expected = np.zeros(len(waveform))
    expected[: round(SECONDS * RATE)] = sound()[:, 0]
    lags = np.fft.irfft(np.fft.rfft(waveform.numpy()) * np.fft.rfft(expected).conj())
    assert lags.max() > 0.97 * np.linalg.norm(expected) * np.linalg.norm(waveform)


@pytest.mark.parametrize("name", WRITERS)
def test_the_header_tells_duration_rate_and_channels(files: dict[str, Path], name: str) -> None:
    info = audio_info(files[name])
    assert info.seconds == pytest.approx(SECONDS, abs=0.1)
    assert info.channels == 1
    assert info.sample_rate == (48000 if name == "a.webm" else RATE)


def test_lossless_formats_give_the_samples_written(files: dict[str, Path]) -> None:
    expected = torch.from_numpy(sound()[:, 0])
    assert torch.equal(read_audio(files["float.wav"]), expected)
    step = 1 / 2**15  # of 16-bit samples
    for name in ("pcm.wav", "a.flac", "a.aiff"):
        assert (read_audio(files[name]) - expected).abs().max() <= step


@pytest.mark.parametrize("name", ["inverted.wav", "inverted.opus"])
def test_channels_that_cancel_each_other_do_not_end_in_silence(tmp_path: Path, name: str) -> None:
    alone = sound(0.5, 48000)
    soundfile.write(tmp_path / "alone.wav", alone, 48000)
    both = np.concatenate([alone, -alone], 1)
    if name.endswith("opus"):
        soundfile.write(tmp_path / name, both, 48000, format="OGG", subtype="OPUS")
    else:
        soundfile.write(tmp_path / name, both, 48000)
    expected = read_audio(tmp_path / "alone.wav")
    difference = read_audio(tmp_path / name)[: len(expected)] - expected
    assert difference.norm() < 0.3 * expected.norm()  # a lossy codec's error, far below 1


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_channels_are_averaged_and_the_rate_changed(
    tmp_path: Path, rate: int, channels: int
) -> None:
    path = tmp_path / "a.wav"
    samples = sound(0.5, rate, channels)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    expected = torchaudio.transforms.Resample(rate, RATE)(torch.from_numpy(samples).mean(1))
    # float32 sums of about 30 terms below 1.
    torch.testing.assert_close(read_audio(path), expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("rate", [15999, 44056, 44101])
def test_rates_without_a_common_divisor_keep_the_duration(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(3.0, rate), rate)
    assert len(read_audio(path)) == pytest.approx(3 * RATE, rel=1e-4)


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    rate=st.sampled_from([8000, 11025, 22050, 44100, 48000]),
)
def test_resampling_does_not_depend_on_the_blocks(sizes: list[int], rate: int) -> None:
    whole = torch.from_numpy(sound(sum(sizes) / rate, rate)[: sum(sizes), 0])
    expected = torchaudio.transforms.Resample(rate, RATE)(whole)
    blocks = ((block, rate) for block in whole.split(sizes))
    joined = torch.cat(list(asr.audio._resample(blocks, RATE)))
    torch.testing.assert_close(joined, expected, rtol=0, atol=5e-7)


def test_blocks_are_small_and_joined_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(3.0, 44100, 2), 44100)
    whole = read_audio(path)
    monkeypatch.setattr(asr.audio, "_BLOCK_SAMPLES", 20000)
    blocks = list(read_blocks(path))
    assert max(len(block) for block in blocks) <= 10000
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=0, atol=5e-7)


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent.wav") == "No such file or directory"
    assert reason(tmp_path) == "a folder; give the files in it"
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    assert reason(pipe).startswith("not a regular file")
    empty = tmp_path / "empty.wav"
    empty.touch()
    assert reason(empty) == "empty file"
    text = tmp_path / "text.flac"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 50)
    assert "not audio" in reason(text)
    silent = tmp_path / "no-samples.wav"
    soundfile.write(silent, np.zeros(0), RATE)
    assert reason(silent) == "holds no audio samples"


def test_what_may_not_be_read_is_not_called_damaged(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(files["pcm.wav"], tmp_path / "locked.wav")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read anything

        def refuse(self: Path, mode: str = "r") -> Any:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        monkeypatch.setattr(Path, "open", refuse)
    assert reason(path) == "Permission denied"


@pytest.mark.parametrize("name", [b"\xff\xfe.wav", b"-", b" \n.wav"])
def test_any_name_is_read(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    path = Path(os.fsdecode(name))
    shutil.copy(files["pcm.wav"], tmp_path / path)
    monkeypatch.chdir(tmp_path)  # a bare "-" is the standard input to libsndfile
    assert torch.equal(read_audio(path), read_audio(files["pcm.wav"]))
    assert audio_info(path) == audio_info(files["pcm.wav"])


def test_a_film_without_sound_is_named(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reason(path) == "holds no audio stream"


def test_more_channels_than_ffmpeg_has_pointers_for(tmp_path: Path) -> None:
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=RATE, layout="hexadecagonal")
        samples = sound(0.5, channels=16)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "flt", "hexadecagonal")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = torch.from_numpy(samples).mean(1)
    torch.testing.assert_close(read_audio(path), expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 20000.0])
def test_samples_that_are_no_sound_are_named(tmp_path: Path, value: float) -> None:
    samples = sound()
    samples[1234] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert "expected finite numbers in [-1, 1]" in reason(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.94])
@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_is_never_a_shorter_recording(
    files: dict[str, Path], tmp_path: Path, name: str, share: float
) -> None:
    data = files[name].read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    assert any(word in reason(path) for word in ("truncated", "damaged", "no audio"))


@pytest.mark.parametrize("name", ["pcm.wav", "float.wav", "a.flac", "vorbis.ogg", "a.opus"])
def test_one_missing_byte_is_noticed(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(files[name].read_bytes()[:-1])
    assert "truncated" in reason(path)


@pytest.mark.parametrize("name", ["vorbis.ogg", "a.opus"])
def test_ogg_streams_in_a_row_are_read_to_the_last(
    files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(2 * files[name].read_bytes())
    assert len(read_audio(path)) == pytest.approx(2 * SECONDS * 16000, rel=0.02)
    with pytest.raises(AudioError, match="several recordings"):
        audio_info(path)
    path.write_bytes((2 * files[name].read_bytes())[:-100])
    assert "truncated" in reason(path)


@pytest.mark.parametrize("tag", [b"", b"TAG".ljust(128)])
@pytest.mark.parametrize("writer", ["libsndfile", "FFmpeg"])
def test_mp3_recordings_in_a_row_are_read_to_the_last(
    files: dict[str, Path], tmp_path: Path, writer: str, tag: bytes
) -> None:
    first, path = tmp_path / "first.mp3", tmp_path / "joined.mp3"
    if writer == "FFmpeg":  # which puts an ID3 tag before it
        encode(first, "libmp3lame")
    else:
        shutil.copy(files["a.mp3"], first)
    last = files["a.mp3"].read_bytes()
    path.write_bytes(2 * (first.read_bytes() + tag) + last)
    alone = read_audio(first)
    assert torch.equal(read_audio(path), torch.cat([alone, alone, read_audio(files["a.mp3"])]))
    with pytest.raises(AudioError, match="several recordings"):
        audio_info(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "truncated" in reason(path)
    path.write_bytes(first.read_bytes()[:4000] + tag + last)
    assert "truncated" in reason(path)
    soundfile.write(path, sound(rate=22050), 22050)
    path.write_bytes(path.read_bytes() + first.read_bytes())
    whole = read_audio(path)
    assert torch.equal(whole[-len(alone) :], alone)
    assert len(whole) == pytest.approx(2 * len(alone), rel=0.05)


def test_mp3_recordings_need_not_say_how_long_they_are(tmp_path: Path) -> None:
    told, untold, path = (tmp_path / f"{name}.mp3" for name in ("told", "untold", "joined"))
    soundfile.write(told, np.tile(sound(), (4, 1)), RATE)
    with av.open(str(untold), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.tile(sound().T, 4), format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    parts = {path: (path.read_bytes(), len(read_audio(path))) for path in (told, untold)}
    for order in itertools.product((told, untold), repeat=3):
        path.write_bytes(b"".join(parts[part][0] for part in order))
        assert len(read_audio(path)) == sum(parts[part][1] for part in order)


def test_an_mp3_whose_count_is_wrong_is_one_recording(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """Frames that it does not count, or what else follows, are no second recording."""
    data, path = files["a.mp3"].read_bytes(), tmp_path / "wrong.mp3"
    assert data[13:17] == b"Xing"
    for count in (0, 1, len(data) // 2, len(data) - 200, len(data) + 1):
        for before in (b"", b"ID3\4\0\0\0\0\0\0"):
            for after in (b"", b"\xff" * 1000, bytes(50000), data[:4], data[:4] + bytes(300)):
                path.write_bytes(before + data[:25] + count.to_bytes(4) + data[29:] + after)
                assert mp3_parts(path) == []
                assert torch.equal(read_audio(path), read_audio(files["a.mp3"]))


@pytest.mark.parametrize("name", ["a.webm", "a.mka", "a.m4a"])
def test_what_begins_late_keeps_its_times(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    encode(path, {"a.webm": "libopus", "a.mka": "flac", "a.m4a": "aac"}[name], 48000, late=1.5)
    waveform = read_audio(path)
    assert len(waveform) == pytest.approx((1.5 + SECONDS) * 16000, rel=0.05)
    loud = (waveform.abs() > 0.05).nonzero()[0]
    assert float(loud) / 16000 == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36])
def test_a_streamed_header_that_leaves_the_length_open_is_read(
    files: dict[str, Path], tmp_path: Path, length: int
) -> None:
    data = bytearray(files["pcm.wav"].read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    data[40:44] = length.to_bytes(4, "little")
    path = tmp_path / "streamed.wav"
    path.write_bytes(data)
    assert torch.equal(read_audio(path), read_audio(files["pcm.wav"]))


@pytest.mark.parametrize("whole", [b"\0\0\0\0", b"\x24\0\0\0", None], ids=str)
def test_a_recorder_that_was_killed_has_left_its_samples(
    files: dict[str, Path], tmp_path: Path, whole: bytes | None
) -> None:
    data = bytearray(files["pcm.wav"].read_bytes())
    data[4:8] = whole or data[4:8]
    data[40:44] = bytes(4)
    path = tmp_path / "unclosed.wav"
    path.write_bytes(data)
    assert torch.equal(read_audio(path), read_audio(files["pcm.wav"]))
    path.write_bytes(data[:44])
    assert "no audio samples" in reason(path)


def test_what_is_called_raw_is_known_by_its_content(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "sound.raw"
    path.write_bytes(files["pcm.wav"].read_bytes())
    assert torch.equal(read_audio(path), read_audio(files["pcm.wav"]))
    path.write_bytes(files["pcm.wav"].read_bytes()[44:])
    assert "not audio" in reason(path)


def test_the_standard_input_is_not_read() -> None:
    assert "standard input" in reason(Path("-"))


def test_a_playlist_reaches_no_other_file(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", str(files["raw.aac"])]
    path.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    assert "not audio" in reason(path)


@pytest.mark.parametrize("name", WRITERS | UNSIZED)
def test_damage_gives_samples_or_an_error(
    files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    data = files[name].read_bytes()
    rng = np.random.default_rng(sum(name.encode()))
    path = tmp_path / name
    for round in range(24):
        damaged = bytearray(data)
        first = 64 if round % 2 else len(data)  # every other time the header
        for place in rng.integers(0, min(first, len(data)), 1 + round % 5):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(data))] if round % 3 == 0 else damaged)
        result = outcome(path)
        if isinstance(result, AudioError):
            assert "\n" not in str(result)
        else:
            assert len(result) > 0
            assert result.isfinite().all()
