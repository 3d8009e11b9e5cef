"""Viterbi over CTC's states in Triton: one program an utterance, its labels across the lanes.

States and ties are those of `align_torch`. Scores are two rows, of blanks and of labels, that never
leave the registers. A byte per label and frame goes to memory, and is read once on the way back:
bits 0-1 say how label k was reached, bit 2 how blank k was. The next frame is loaded before the
current one is worked on, so that its latency is hidden. Offsets are 64-bit; lengths are runtime
values, read on the device, so that the host never waits.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.context import current_device

if TYPE_CHECKING:
    from kernels.bench.compiled import Specimen

MOST_LABELS = 2**15 - 1  # of an utterance: with more, shared memory does not hold a frame's sums
_FROM_BLANK, _FROM_LABEL, _BLANK_FROM_LABEL = (tl.constexpr(code) for code in (1, 2, 4))


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["T", "L", "blank", "stride_t", "stride_b"]
)
def _viterbi(  # type: ignore[no-untyped-def]
    log_probs,  # [T, B, V], any strides
    targets,  # [B, L]
    input_lengths,
    target_lengths,
    choices,  # [B, T, L + 1] uint8, scratch
    states,  # [B, T] int64, out
    scores,  # [B], out
    T,
    L,
    blank,
    stride_t,
    stride_b,
    stride_v,
    BLOCK: tl.constexpr,  # power of two, at least L + 1
):
    b = tl.program_id(0).to(tl.int64)
    frames = tl.load(input_lengths + b)
    length = tl.load(target_lengths + b)
    places = tl.arange(0, BLOCK)
    has_label = places < length
    has_blank = places <= length
    labels = tl.load(targets + b * L + places, mask=has_label, other=0)
    previous = tl.load(targets + b * L + places - 1, mask=has_label & (places > 0), other=0)
    may_skip = has_label & (places > 0) & (labels != previous)
    left = tl.maximum(places - 1, 0)
    row = log_probs + b * stride_b
    columns = labels * stride_v
    blank_column = tl.cast(blank, tl.int64) * stride_v
    next_blank = tl.load(row + blank_column, mask=frames > 0, other=0.0)
    next_label = tl.load(row + columns, mask=has_label & (frames > 0), other=float("-inf"))
    at_label = tl.full([BLOCK], float("-inf"), next_label.dtype)
    at_blank = tl.where(places == 0, 0.0, at_label)  # before the first frame
    written = choices + b * T * (L + 1)
    for t in range(0, frames):
        frame_blank = next_blank
        frame_label = next_label
        row += stride_t
        more = t + 1 < frames
        next_blank = tl.load(row + blank_column, mask=more, other=0.0)
        next_label = tl.load(row + columns, mask=has_label & more, other=float("-inf"))
        before = tl.where(places > 0, tl.gather(at_label, left, 0), float("-inf"))
        better = at_blank > at_label
        choice = tl.where(better, _FROM_BLANK, 0)
        label = tl.where(better, at_blank, at_label)
        better = may_skip & (before > label)
        choice = tl.where(better, _FROM_LABEL, choice)
        label = tl.where(better, before, label)
        better = before > at_blank
        choice += tl.where(better, _BLANK_FROM_LABEL, 0)
        at_blank = tl.where(better, before, at_blank) + frame_blank
        at_label = label + frame_label
        tl.store(written + places, choice.to(tl.uint8), mask=has_blank)
        written += L + 1
    is_last = (places + 1) == length
    ends_blank = tl.sum(tl.where(places == length, at_blank, 0.0), 0)
    ends_label = tl.sum(tl.where(is_last, at_label, 0.0), 0)
    is_label = ((ends_label >= ends_blank) & (length > 0)).to(tl.int64)
    tl.store(scores + b, tl.where(is_label == 1, ends_label, ends_blank))
    tl.debug_barrier()  # the choices of other threads are read from here on
    place = length - is_label
    path = states + b * T + frames
    for _ in range(0, frames):
        path -= 1
        written -= L + 1
        tl.store(path, 2 * place + is_label)
        choice = tl.load(written + place).to(tl.int64)
        way = choice & (_FROM_BLANK | _FROM_LABEL)
        to_label = (1 - is_label) * (choice // _BLANK_FROM_LABEL)
        place -= is_label * (way // _FROM_LABEL) + to_label
        is_label = is_label * (1 - way % _FROM_LABEL) + to_label


def num_warps(block: int) -> int:
    """Four labels a thread, within one warp as long as that is possible."""
    return min(16, max(1, block // 128))


def viterbi(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
) -> tuple[Tensor, Tensor]:
    """As `align_torch.viterbi`."""
    T, B, _ = log_probs.shape
    L = targets.shape[1]
    states = targets.new_empty(B, T)
    scores = log_probs.new_empty(B)
    choices = torch.empty(B, T, L + 1, dtype=torch.uint8, device=targets.device)
    if B:
        block = triton.next_power_of_2(L + 1)
        inputs = (log_probs, targets.contiguous(), input_lengths, target_lengths)
        with current_device(log_probs.device):
            _viterbi[(B,)](
                *(*inputs, choices, states, scores, T, L, blank, *log_probs.stride()),
                BLOCK=block,
                num_warps=num_warps(block),
            )
    return states, scores


def specimens() -> "list[Specimen]":
    """What `python -m kernels.bench compile` compiles: short texts to very long ones."""
    from kernels.bench.compiled import Specimen

    types = dict.fromkeys(_viterbi.arg_names, "i32")
    types |= {"log_probs": "*fp32", "scores": "*fp32", "choices": "*u8", "BLOCK": "constexpr"}
    types |= dict.fromkeys(("targets", "input_lengths", "target_lengths", "states"), "*i64")
    return [
        Specimen(
            f"ctc align, {block - 1} labels",
            _viterbi,
            types,
            {"BLOCK": block},
            {"num_warps": num_warps(block)},
        )
        for block in (64, 256, 1024, 4096)
    ]
