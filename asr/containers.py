"""What libsndfile does not see in Ogg and MP3 files: recordings in a row, and a missing end."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path

from asr.errors import AudioError

_OGG_PAGE = 65307  # bytes of the largest page
_OGG_FLAGS = re.compile(rb"OggS\0(.)", re.DOTALL)  # of each page
# A first frame without sound: header, side information of MPEG 2 mono, of both others, of MPEG 1
# stereo, what the tag holds, and if it does: frames of the recording; its bytes, this one's too.
_XING = re.compile(
    rb"\xff[\xe2-\xff]..(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0(?:[\x02\x06\x0a\x0e]|"
    rb"[\x03\x07\x0b\x0f].{4})(.{4})",
    re.DOTALL,
)
_KBITS = (  # of layer III, by the header's four bits, 0: not allowed
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),  # MPEG 2
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),  # MPEG 1
)
_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MISCOUNTED = 16384  # bytes after a recording's count that may still be its own: a second of it
_ID3V1 = 128  # bytes after a recording


@contextmanager
def _bytes_of(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        yield data


def is_chained_ogg(path: Path) -> bool:
    """Whether an Ogg stream follows another (RFC 3533): libsndfile reads the first alone."""
    with _bytes_of(path) as data:
        ended = False
        for page in _OGG_FLAGS.finditer(data):
            flags = page[1][0]
            if ended and flags & 2:  # begins a stream
                return True
            ended |= bool(flags & 4)  # ends one
    return False


def check_last_ogg_page(path: Path) -> None:
    """An Ogg file ends in a whole page that carries the end-of-stream flag (RFC 3533).

    Raises:
        AudioError: this one does not.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(segments)
    if not (whole and page[5] & 4):
        raise AudioError(f"{path}: truncated: its last Ogg page does not end the stream")


def mp3_parts(path: Path) -> list[range]:
    """Bytes of each recording in an MP3 file that was joined from several; of another nothing.

    Where a recording says in its first frame how long it is, libmpg123 reads no further. Another
    one begins where there is such a frame again, or where frames go on for a second or more.
    """
    with _bytes_of(path) as data:
        bounds = {0}
        for xing in _XING.finditer(data):
            if xing.start() > _after_id3v2(data, 0):
                bounds.add(xing.start())
            if not (size := int.from_bytes(xing[1])):  # not known
                continue
            end = xing.start() + size
            if data[end : end + 3] == b"TAG":
                end += _ID3V1
            end = _after_id3v2(data, end)
            if _has_frames(data, end):
                bounds.add(end)
        parts = [range(*pair) for pair in pairwise([*sorted(bounds), len(data)])]
    return parts if len(parts) > 1 else []


def _has_frames(data: mmap, start: int) -> bool:
    """Whether frames of layer III follow one another there for `_MISCOUNTED` bytes."""
    place = start
    while place < start + _MISCOUNTED and (size := _frame_size(data, place)):
        place += size
    return place >= start + _MISCOUNTED


def _frame_size(data: mmap, start: int) -> int:
    """Bytes of the frame that begins there; 0: none."""
    header = int.from_bytes(data[start : start + 4])
    version, layer = header >> 19 & 3, header >> 17 & 3
    kbits = _KBITS[version == 3][header >> 12 & 15]
    rate = header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate == 3 or not kbits:
        return 0
    samples = 1152 if version == 3 else 576
    return samples * kbits * 125 // _HERTZ[version][rate] + (header >> 9 & 1)


def _after_id3v2(data: mmap, start: int) -> int:
    if data[start : start + 3] != b"ID3":
        return start
    digits = data[start + 6 : start + 10]  # of base 128
    return start + 10 + sum(digit << 7 * place for place, digit in enumerate(reversed(digits)))
