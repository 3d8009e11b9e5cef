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
_MP3_FRAME = re.compile(rb"\xff[\xe2-\xff]")  # how one begins
# A first frame without sound: header, side information of MPEG 2 mono, of both others, of MPEG 1
# stereo, what the tag holds, and if it does: frames of the recording; its bytes, this one's too.
_XING = re.compile(
    rb"\xff[\xe2-\xff]..(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0(?:[\x02\x06\x0a\x0e]|"
    rb"[\x03\x07\x0b\x0f].{4})(.{4})",
    re.DOTALL,
)
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

    Where a recording says how long it is, libmpg123 reads no further: another one may follow.
    """
    with _bytes_of(path) as data:
        bounds = [0]
        while end := _mp3_end(data, bounds[-1]):
            bounds.append(end)
        bounds.append(len(data))
    return [range(*pair) for pair in pairwise(bounds)] if len(bounds) > 2 else []


def _mp3_end(data: mmap, start: int) -> int:
    """Where the recording that begins at `start` ends and another one begins; 0: nowhere."""
    xing = _XING.match(data, _after_id3v2(data, start))
    if xing is None:
        return 0
    end = xing.start() + int.from_bytes(xing[1])
    if data[end : end + 3] == b"TAG":
        end += _ID3V1
    return end if _MP3_FRAME.match(data, _after_id3v2(data, end)) else 0


def _after_id3v2(data: mmap, start: int) -> int:
    if data[start : start + 3] != b"ID3":
        return start
    digits = data[start + 6 : start + 10]  # of base 128
    return start + 10 + sum(digit << 7 * place for place, digit in enumerate(reversed(digits)))
