"""The kernels of the loss in Triton: five launches forward and backward.

Scores are base-2 logarithms in float32, because the hardware has exp2 and log2. Alpha and beta
are one recursion: beta is alpha of the utterance turned around in time and labels. An utterance
has two vectors of scores across the lanes of a program, blank l and label l for l = 0 ... L,
where label l stands between blanks l and l + 1. From one frame to the next only the label before
has to change lanes, by `tl.gather` between registers.

Every frame is stored relative to the largest score of the frame before, so that the rounding
error does not grow with T. What was taken off differs between frames and directions, and
cancels where a frame's occupancies are divided by their sum. No sum is formed by atomics.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NEVER = tl.constexpr(float("-inf"))


@triton.jit
def _finite(top):
    """What to subtract before exp2; -inf - -inf would be NaN."""
    return tl.where(top == _NEVER, 0.0, top)


@triton.jit
def _log_add(a, b):
    top = _finite(tl.maximum(a, b))
    return top + tl.log2(tl.exp2(a - top) + tl.exp2(b - top))


@triton.jit
def _accumulate(top, total, x):
    """log2(sum(exp2)) of rows, block by block, as a largest element and a sum relative to it."""
    new = tl.maximum(top, tl.max(x, axis=1))
    shift = _finite(new)
    total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(x - shift[:, None]), axis=1)
    return new, total


@triton.jit
def _log_total(rows, inside, V, stride_v, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr):
    """log2(sum(exp(logits))) of each row."""
    top = tl.full([BLOCK_T], _NEVER, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        mask = inside[:, None] & (v < V)[None, :]
        x = tl.load(rows[:, None] + v[None, :].to(tl.int64) * stride_v, mask=mask, other=_NEVER)
        top, total = _accumulate(top, total, x.to(tl.float32) * _LOG2E)
    return _finite(top) + tl.log2(total)


@triton.jit(do_not_specialize=["T", "L", "V", "blank", "limit", "stride_targets"])
def prepare_kernel(
    targets,  # [B, L] int64
    lengths,  # [B] int64
    frames,  # [B] int64
    extent,  # out: [B, 2] int32, frames and labels that are worked on; 0 if not to be aligned
    verdict,  # out: [B] float32 that is added to the loss: 0, inf, or NaN for wrong arguments
    symbols,  # out: [B, L + 1] int32, the blank; then a label where it is its first occurrence
    places,  # out: [B, L] int32, of each label in `symbols`
    following,  # out: [B, L] int32, next position with the same label, L if none
    T,
    L,
    V,
    blank,
    limit,
    stride_targets,
    BLOCK: tl.constexpr,
):
    """One program an utterance: what its targets are, and whether they can be aligned."""
    b = tl.program_id(0).to(tl.int64)
    count = tl.load(frames + b)
    length = tl.load(lengths + b)
    wrong = ((count < 0) | (count > T) | (length < 0) | (length > limit)).to(tl.int32)
    known = tl.minimum(length, L)
    row = targets + b * stride_targets
    for start in range(0, L, BLOCK):
        here = start + tl.arange(0, BLOCK)
        inside = here < known
        label = tl.load(row + here, mask=inside, other=-1)
        bad = inside & ((label < 0) | (label >= V) | (label == blank))
        wrong += tl.sum(bad.to(tl.int32))
        first = tl.zeros([BLOCK], tl.int32) + L
        after = tl.zeros([BLOCK], tl.int32) + L
        for other in range(0, L, BLOCK):
            there = other + tl.arange(0, BLOCK)
            compared = tl.load(row + there, mask=there < known, other=-2)
            same = label[:, None] == compared[None, :]
            at = tl.where(same, there[None, :], L)
            first = tl.minimum(first, tl.min(at, axis=1))
            at = tl.where(there[None, :] > here[:, None], at, L)
            after = tl.minimum(after, tl.min(at, axis=1))
        symbol = tl.where(inside & (first == here) & (bad == 0), label, blank)
        tl.store(symbols + b * (L + 1) + 1 + here, symbol.to(tl.int32), mask=here < L)
        tl.store(places + b * L + here, tl.where(inside, 1 + first, 0), mask=here < L)
        tl.store(following + b * L + here, after, mask=here < L)
    tl.store(symbols + b * (L + 1), blank)
    # That equal neighbours need a frame more, the recursion finds out: no path ends.
    judged = tl.where(length > count, float("inf"), 0.0)
    judged = tl.where(wrong > 0, float("nan"), judged)
    tl.store(verdict + b, judged)
    works = (judged == 0.0).to(tl.int32)
    tl.store(extent + 2 * b, works * count.to(tl.int32))
    tl.store(extent + 2 * b + 1, works * length.to(tl.int32))


@triton.jit(do_not_specialize=["first", "T", "K", "V", "stride_t", "stride_b"])
def emit_kernel(
    logits,  # [T, B, V], any strides
    symbols,
    extent,
    emitted,  # out: [T, B, K]
    first,  # frame that the logits begin with
    T,
    K,
    V,
    stride_t,
    stride_b,
    stride_v,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some frames of one utterance: log-softmax, of which the utterance's symbols are kept."""
    b = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BLOCK_T
    if first + start < tl.load(extent + 2 * b):
        t = start + tl.arange(0, BLOCK_T)
        inside = t < T
        rows = logits + t.to(tl.int64) * stride_t + b * stride_b
        log_total = _log_total(rows, inside, V, stride_v, BLOCK_T, BLOCK_V)
        out = emitted + (t.to(tl.int64) * tl.num_programs(1) + b) * K
        for k_start in range(0, K, BLOCK_K):
            k = k_start + tl.arange(0, BLOCK_K)
            v = tl.load(symbols + b * K + k, mask=k < K, other=0).to(tl.int64)
            mask = inside[:, None] & (k < K)[None, :]
            x = tl.load(rows[:, None] + v[None, :] * stride_v, mask=mask, other=0.0)
            x = x.to(tl.float32) * _LOG2E - log_total[:, None]
            tl.store(out[:, None] + k[None, :], x, mask=mask)


@triton.jit(do_not_specialize=["T", "B", "L"])
def recur_kernel(
    emitted,  # [T, B, L + 1]
    places,
    extent,
    verdict,
    losses,  # out: [B], nats
    scores,  # out: [2, T, B, 2, L + 1], alpha and beta (with its own frame), blanks and labels
    T,
    B,
    L,
    KEEP: tl.constexpr,  # store the scores
    BLOCK: tl.constexpr,  # power of two above L
    STAGES: tl.constexpr,
):
    """Program (b, 0) runs alpha of utterance b, program (b, 1) beta."""
    b = tl.program_id(0).to(tl.int64)
    backward = tl.program_id(1)
    frames = tl.load(extent + 2 * b)
    length = tl.load(extent + 2 * b + 1)
    lane = tl.arange(0, BLOCK)
    is_blank = lane <= length
    is_label = lane < length
    blank_state = tl.where(backward == 1, length - lane, lane)
    label_state = tl.where(backward == 1, length - 1 - lane, lane)
    before_state = tl.where(backward == 1, length - lane, lane - 1)
    has_before = is_label & (lane > 0)
    place = tl.load(places + b * L + label_state, mask=is_label, other=0)
    place_before = tl.load(places + b * L + before_state, mask=has_before, other=0)
    over_blank = has_before & (place != place_before)
    left = tl.maximum(lane - 1, 0)

    blank = tl.where(lane == 0, 0.0, _NEVER)  # before the first frame
    label = tl.full([BLOCK], _NEVER, tl.float32)
    taken_off = tl.zeros([], tl.float64)
    for n in tl.range(0, frames, num_stages=STAGES):
        frame = tl.where(backward == 1, frames - 1 - n, n).to(tl.int64)
        row = emitted + (frame * B + b) * (L + 1)
        emitted_blank = tl.load(row)
        emitted_label = tl.load(row + place, mask=is_label, other=_NEVER)
        before = tl.where(lane > 0, tl.gather(label, left, 0), _NEVER)
        largest = _finite(tl.max(tl.maximum(blank, label)))
        skipped = tl.where(over_blank, before, _NEVER)
        top = _finite(tl.maximum(tl.maximum(label, blank), skipped))
        total = tl.exp2(label - top) + tl.exp2(blank - top) + tl.exp2(skipped - top)
        label = top + tl.log2(total) + (emitted_label - largest)
        blank = _log_add(blank, before) + (emitted_blank - largest)
        blank = tl.where(is_blank, blank, _NEVER)
        taken_off += largest.to(tl.float64)
        if KEEP:
            out = scores + ((backward.to(tl.int64) * T + frame) * B + b) * 2 * (L + 1)
            tl.store(out + blank_state, blank, mask=is_blank)
            tl.store(out + L + 1 + label_state, label, mask=is_label)
    if backward == 0:
        # Sums with one term: unlike a maximum they keep NaN.
        ends_blank = tl.sum(tl.where(lane == length, blank, 0.0))
        ends_label = tl.sum(tl.where(lane == length - 1, label, 0.0))
        ends_label = tl.where(length > 0, ends_label, _NEVER)
        bits = _log_add(ends_blank, ends_label).to(tl.float64) + taken_off
        tl.store(losses + b, (-bits * _LN2).to(tl.float32) + tl.load(verdict + b))


@triton.jit
def _joint(alpha, beta, state, emitted, mask):
    """Alpha and beta of states in a frame, whose emission both contain."""
    both = tl.load(alpha + state, mask=mask, other=_NEVER) + tl.load(
        beta + state, mask=mask, other=_NEVER
    )
    return tl.where(both == _NEVER, _NEVER, both - emitted)


@triton.jit(do_not_specialize=["T", "B", "L"])
def occupy_kernel(
    emitted,  # [T, B, L + 1]
    scores,
    places,
    following,
    extent,
    residual,  # out: [T, B, L + 1], probability minus occupancy of each symbol
    T,
    B,
    L,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Some frames of one utterance: occupancies of states, divided by their sum."""
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    length = tl.load(extent + 2 * b + 1)
    inside = (t < tl.load(extent + 2 * b))[:, None]
    row = t.to(tl.int64) * B + b
    blank_alpha = (scores + row * 2 * (L + 1))[:, None]
    blank_beta = blank_alpha + tl.cast(T, tl.int64) * B * 2 * (L + 1)
    label_alpha = blank_alpha + L + 1
    label_beta = blank_beta + L + 1
    emissions = (emitted + row * (L + 1))[:, None]
    out = (residual + row * (L + 1))[:, None]

    emitted_blank = tl.load(emissions, mask=inside, other=0.0)
    top = tl.full([BLOCK_T], _NEVER, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    label_top = top
    label_total = total
    for start in range(0, length + 1, BLOCK_L):
        lane = (start + tl.arange(0, BLOCK_L))[None, :]
        joint = _joint(blank_alpha, blank_beta, lane, emitted_blank, inside & (lane <= length))
        top, total = _accumulate(top, total, joint)
        mask = inside & (lane < length)
        place = tl.load(places + b * L + lane, mask=lane < length, other=0)
        emitted_label = tl.load(emissions + place, mask=mask, other=0.0)
        joint = _joint(label_alpha, label_beta, lane, emitted_label, mask)
        label_top, label_total = _accumulate(label_top, label_total, joint)
    in_blank = (_finite(top) + tl.log2(total))[:, None]
    everything = _log_add(in_blank, (_finite(label_top) + tl.log2(label_total))[:, None])
    tl.store(out, tl.exp2(emitted_blank) - tl.exp2(in_blank - everything), mask=inside)

    for start in range(0, length, BLOCK_L):
        lane = (start + tl.arange(0, BLOCK_L))[None, :]
        place = tl.load(places + b * L + lane, mask=lane < length, other=0)
        is_first = place == 1 + lane
        emitted_label = tl.load(emissions + place, mask=inside & is_first, other=0.0)
        occupancy = tl.zeros([BLOCK_T, BLOCK_L], tl.float32)
        state = tl.where(is_first, lane, L)
        while tl.min(state) < L:
            mask = inside & (state < L)
            joint = _joint(label_alpha, label_beta, state, emitted_label, mask)
            occupancy += tl.where(mask, tl.exp2(joint - everything), 0.0)
            state = tl.load(following + b * L + state, mask=state < L, other=L)
        tl.store(out + place, tl.exp2(emitted_label) - occupancy, mask=inside & is_first)


@triton.jit(
    do_not_specialize=[
        *("first", "T", "K", "V", "blank"),
        *("stride_t", "stride_b", "stride_out_t", "stride_out_b"),
    ]
)
def gradient_kernel(
    logits,  # [T, B, V], any strides
    residual,  # [T, B, K], contiguous
    symbols,
    extent,
    weights,
    out,  # [T, B, V], any strides
    first,
    T,
    K,
    V,
    blank,
    stride_t,
    stride_b,
    stride_v,
    stride_out_t,
    stride_out_b,
    stride_out_v,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some frames of one utterance: softmax, then the residuals in place of its symbols'."""
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = t < T
    weight = tl.load(weights + b)
    active = exists & (first + t < tl.where(weight == 0.0, 0, tl.load(extent + 2 * b)))
    rows = logits + t.to(tl.int64) * stride_t + b * stride_b
    out_rows = out + t.to(tl.int64) * stride_out_t + b * stride_out_b
    log_total = _log_total(rows, active, V, stride_v, BLOCK_T, BLOCK_V)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        mask = active[:, None] & (v < V)[None, :]
        v = v[None, :].to(tl.int64)
        x = tl.load(rows[:, None] + v * stride_v, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, tl.exp2(x * _LOG2E - log_total[:, None]) * weight, 0.0)
        address = out_rows[:, None] + v * stride_out_v
        tl.store(address, x.to(out.dtype.element_ty), mask=exists[:, None] & (v < V))
    tl.debug_barrier()  # other threads wrote what is replaced now
    residuals = residual + (t.to(tl.int64) * tl.num_programs(1) + b) * K
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        v = tl.load(symbols + b * K + k, mask=k < K, other=blank)
        mask = active[:, None] & ((v != blank) | (k == 0))[None, :]
        x = tl.load(residuals[:, None] + k[None, :], mask=mask, other=0.0) * weight
        address = out_rows[:, None] + v[None, :].to(tl.int64) * stride_out_v
        tl.store(address, x.to(out.dtype.element_ty), mask=mask)
