"""Long audio -> pieces that a network can hold, cut where it is quietest."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SECONDS = 5.0
MAX_SECONDS = 20.0

_FRAME = 0.01  # seconds between places where a cut may fall
_PAUSE = 0.5  # seconds that should be quiet around a cut
_FLOOR = 1e-8  # power that counts as silence: -80 dB of full scale


class Segment(NamedTuple):
    """A piece of a recording."""

    start: int  # its first sample's place in the recording
    waveform: Tensor  # [N] float32


def segments(blocks: Iterable[Tensor], sample_rate: int) -> Iterator[Segment]:
    """Cut a recording that comes block by block; at most `MAX_SECONDS` and one block are held.

    A recording of up to `MAX_SECONDS` stays whole. From a longer one pieces of `MIN_SECONDS` to
    `MAX_SECONDS` are cut off at the place, among multiples of 10 ms, around which half a second
    is quietest: of lowest mean level in dB, so that a pause counts more than the stop of a
    plosive, and a short gap more than soft speech. Where the cuts fall does not depend on how the
    recording came in blocks.

    Args:
        blocks: `[n]` float32 each, in order.
        sample_rate: Hz.

    Yields:
        Segments that, joined, are the recording; none for an empty one.
    """
    longest = round(MAX_SECONDS * sample_rate)
    held = torch.empty(0)
    start = 0
    for block in blocks:
        held = torch.cat([held, block]) if len(held) else block
        while len(held) > longest:
            cut = _quietest(held[:longest], sample_rate)
            yield Segment(start, held[:cut].clone())  # a view would keep the whole block
            held = held[cut:]
            start += cut
        held = held.clone()
    if len(held):
        yield Segment(start, held)


def _quietest(waveform: Tensor, sample_rate: int) -> int:
    """Sample at which to cut `MAX_SECONDS` of waveform: the first of the quietest places."""
    frame = round(_FRAME * sample_rate)
    power = waveform[: len(waveform) // frame * frame].reshape(-1, frame).var(1)
    level = (power + _FLOOR).log()  # [frames]
    pause = round(_PAUSE / _FRAME)
    around = F.avg_pool1d(level[None], pause, stride=1)[0]  # item i: around the start of
    first = round(MIN_SECONDS / _FRAME) - pause // 2  # frame i + pause // 2
    return (first + int(around[first:].argmin()) + pause // 2) * frame
