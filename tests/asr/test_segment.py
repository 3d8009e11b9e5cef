import itertools
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from asr.segment import MAX_SECONDS, MIN_SECONDS, segments

RATE = 1000


def speech(*parts: tuple[float, float], seed: int = 0) -> Tensor:
    """Noise of given seconds and level, one part after the other: [N]."""
    rng = np.random.default_rng(seed)
    waves = [rng.normal(0, level, round(seconds * RATE)) for seconds, level in parts]
    return torch.from_numpy(np.concatenate(waves).astype(np.float32))


def cuts(waveform: Tensor) -> list[float]:
    """Seconds at which a recording is cut."""
    return [segment.start / RATE for segment in segments([waveform], RATE)][1:]


@given(
    seconds=st.floats(0, 90),
    sizes=st.lists(st.integers(300, 40_000), min_size=1, max_size=5),
    seed=st.integers(0, 100),
)
def test_joined_they_are_the_recording_however_it_comes(
    seconds: float, sizes: list[int], seed: int
) -> None:
    waveform = speech((seconds, 0.1), seed=seed)
    whole = list(segments([waveform], RATE))
    assert torch.equal(torch.cat([torch.empty(0), *(s.waveform for s in whole)]), waveform)
    assert [s.start for s in whole] == [
        sum(len(t.waveform) for t in whole[:i]) for i in range(len(whole))
    ]
    assert all(len(s.waveform) <= MAX_SECONDS * RATE for s in whole)
    assert all(len(s.waveform) >= MIN_SECONDS * RATE for s in whole[:-1])

    blocks = []
    for size in itertools.cycle(sizes):
        if not len(waveform):
            break
        blocks.append(waveform[:size])
        waveform = waveform[size:]
    in_blocks = list(segments(blocks, RATE))
    assert [s.start for s in in_blocks] == [s.start for s in whole]
    assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(in_blocks, whole, strict=True))


def test_a_short_recording_stays_whole() -> None:
    assert cuts(speech((MAX_SECONDS, 0.1))) == []
    assert list(segments([], RATE)) == []


def test_cuts_fall_into_the_pauses() -> None:
    words = [(float(seconds), 0.1) for seconds in np.random.default_rng(0).uniform(1, 4, 40)]
    pauses = [(0.5, 1e-3)] * len(words)
    parts = [part for pair in zip(words, pauses, strict=True) for part in pair]
    ends = np.cumsum([seconds for seconds, _ in parts])
    found = cuts(speech(*parts))
    assert len(found) >= ends[-1] / MAX_SECONDS - 1
    for cut in found:
        index = int(np.searchsorted(ends, cut))
        assert index % 2 == 1, f"{cut} s is within a word"
        assert abs(cut - (ends[index] - 0.25)) <= 0.1  # in the middle of the pause


def test_a_pause_counts_more_than_a_deeper_but_short_gap() -> None:
    plosive, pause = (0.08, 1e-5), (0.6, 3e-3)
    (cut,) = cuts(speech((8.0, 0.1), plosive, (5.0, 0.1), pause, (7.0, 0.1)))
    assert 13.08 < cut < 13.68


def test_a_short_gap_counts_more_than_soft_speech() -> None:
    gap, soft = (0.2, 1e-4), (0.6, 0.03)
    (cut,) = cuts(speech((8.0, 0.1), soft, (5.0, 0.1), gap, (7.0, 0.1)))
    assert 13.6 <= cut <= 13.8


def test_an_offset_changes_nothing() -> None:
    waveform = speech((8.0, 0.1), (0.6, 0.03), (5.0, 0.1), (0.2, 1e-4), (7.0, 0.1))
    assert cuts(waveform + 0.3) == cuts(waveform)


def test_one_large_block_is_not_copied_for_each_piece() -> None:
    """An hour as one block, which `transcribe_waveform` gives, took minutes."""

    class Copied(TorchDispatchMode):
        samples = 0

        def __torch_dispatch__(
            self,
            func: OpOverload,
            types: object,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> object:
            if func.overloadpacket is torch.ops.aten.clone:
                self.samples += args[0].numel()
            return func(*args, **(kwargs or {}))

    waveform = speech((600.0, 0.1))
    with Copied() as copied:
        assert len(list(segments([waveform], RATE))) > 30
    assert copied.samples <= 2 * len(waveform)


def test_pieces_do_not_keep_the_block_that_they_are_of() -> None:
    for piece in segments([speech((45.0, 0.1))], RATE):
        assert piece.waveform.untyped_storage().nbytes() == piece.waveform.nbytes


def test_digital_silence_is_cut_too() -> None:
    assert cuts(torch.zeros(60 * RATE)) == [5.0 * i for i in range(1, 9)]
