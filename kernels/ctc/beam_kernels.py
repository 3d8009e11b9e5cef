"""The kernels of the beam search in Triton: all frames of an utterance in one program, and a trace.

The algorithm is that of `beam_torch`. The prefixes of an utterance lie across the lanes of its
program, and never leave the registers; `tl.gather` takes what a lane needs from another one.

A frame's candidates are numbered: the K prefixes as they are; then each prefix k extended by unit
c of C in way r of R, K + (k * C + c) * R + r. They are ranked as 64-bit integers, the score above
the number, so that of equal scores the lower number is better. Extensions come in tiles, and only
a tile that holds one better than the worst of the K best so far is sorted. What else an extension
changes is computed again for the K that are chosen, which is less than keeping it for all.

An extension that is in the beam already may not be made again. Its place in a table of all
extensions is marked with the number of the frame, so that the table need never be cleared. It is
the only memory that threads of a program share; hence the barriers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.ctc.scorer_kernels import Sizes, hotword_step, spell, unit_step

_NEVER = tl.constexpr(float("-inf"))
_MIX = tl.constexpr(6364136223846793005)  # as in `beam_torch`
_BITS = tl.constexpr(0x7FFFFFFF)  # all but the sign
_IMPOSSIBLE = tl.constexpr(-0x7F800001)  # `_ordered(-inf)`
_LOWEST = tl.constexpr(-(2**63))
_HIGHEST = tl.constexpr(2**63 - 1)
_NUMBER = tl.constexpr(2**32 - 1)  # bits of a rank that hold the number
_ABSENT = tl.constexpr(-1)  # key of a lane without a prefix
_AT_ONCE = tl.constexpr(16)  # possible parents


class Beam(NamedTuple):
    """Prefixes, one a lane: the fields of `beam_torch`'s. No prefix: scores of -inf."""

    at_blank: Any
    at_label: Any
    taken: Any  # last unit * R + option; blank * R for the empty prefix
    word: Any
    key: Any
    above: Any
    extra: Any
    context: Any  # state of the language model or the speller
    node: Any  # state of the hotwords


class Extension(NamedTuple):
    """Prefixes with one more unit."""

    parent: Any  # lane
    taken: Any
    score: Any  # log-probability of the paths
    way: Any  # state before * V + unit
    word: Any
    extra: Any
    context: Any
    node: Any


class Frame(NamedTuple):
    """Scores of a frame, and the units that may extend a prefix."""

    scores: Any
    stride: Any
    units: Any  # [C]
    C: Any
    V: Any
    blank: Any


@triton.jit
def _combine(a, b, LOG_ADD: tl.constexpr):
    if LOG_ADD:
        top = tl.maximum(a, b)
        top = tl.where(top == _NEVER, 0.0, top)  # -inf - -inf would be NaN
        return top + tl.log(tl.exp(a - top) + tl.exp(b - top))
    else:
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rank(score, number):
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ _BITS, bits)  # ordered as the scores are
    bits = tl.where(score != score, _BITS, bits)  # NaN above all, as for torch.topk
    return (bits.to(tl.int64) << 32) | (number.to(tl.int64) ^ _NUMBER)


@triton.jit
def _heard(frame, unit, mask):
    place = frame.scores + unit.to(tl.int64) * frame.stride
    return tl.load(place, mask=mask, other=_NEVER)


@triton.jit
def _enter(beam, parent, unit, V, R: tl.constexpr, LOG_ADD: tl.constexpr):
    """Paths of a prefix that `unit` may follow: their score, and the way from them."""
    at_blank = tl.gather(beam.at_blank, parent, 0)
    at_label = tl.gather(beam.at_label, parent, 0)
    again = unit == tl.gather(beam.taken, parent, 0) // R
    score = tl.where(again, at_blank, _combine(at_blank, at_label, LOG_ADD))
    state = 2 * parent + ((at_label > at_blank) & (again == 0)).to(tl.int32)
    return score, state.to(tl.int64) * V + unit


@triton.jit
def _extend(
    beam,
    frame,
    scoring,
    sizes,
    number,
    wanted,
    R: tl.constexpr,
    LOG_ADD: tl.constexpr,
):
    """Extensions by their number, where wanted."""
    number = tl.where(wanted, number, 0)
    parent = number // (frame.C * R)
    option = number % R
    unit = tl.load(frame.units + number // R % frame.C).to(tl.int32)
    score, way = _enter(beam, parent, unit, frame.V, R, LOG_ADD)
    extra = tl.gather(beam.extra, parent, 0) + scoring.token_score
    context = tl.gather(beam.context, parent, 0)
    node = tl.gather(beam.node, parent, 0)
    word = tl.full(unit.shape, -1, tl.int32)
    if scoring.tree.keys is not None:
        context, gain, word = spell(
            scoring.tree, scoring.ngram, sizes, context, unit, option, wanted, R
        )
        gain = tl.where(gain == _NEVER, _NEVER, scoring.lm_weight * gain)
        extra += gain + tl.where(word >= 0, scoring.word_score, 0.0)
    elif scoring.ngram.keys is not None:
        context, gain = unit_step(scoring.ngram, sizes, context, unit, wanted)
        extra += scoring.lm_weight * gain
    if scoring.hotwords.after is not None:
        node, gain = hotword_step(scoring.hotwords, sizes, node, unit, wanted)
        extra += gain
    score += _heard(frame, unit, wanted)
    return Extension(parent, unit * R + option, score, way, word, extra, context, node)


@triton.jit
def _mark(marked, parent, taken, V, R: tl.constexpr):
    return marked + parent.to(tl.int64) * V * R + taken


@triton.jit
def _ranked(
    beam,
    frame,
    scoring,
    sizes,
    number,
    wanted,
    marked,
    now,
    K,
    R: tl.constexpr,
    LOG_ADD: tl.constexpr,
):
    """Ranks of extensions, of those that are marked the lowest."""
    new = _extend(beam, frame, scoring, sizes, number, wanted, R, LOG_ADD)
    mark = tl.load(_mark(marked, new.parent, new.taken, frame.V, R), mask=wanted, other=0)
    ranks = _rank(new.score + new.extra, K + number)
    return tl.where(wanted & (mark != now), ranks, _LOWEST)


@triton.jit
def _sort_rows(x, first, turned, LOG: tl.constexpr):
    """Sort rows of 2**LOG that are sorted by turns in pieces of 2**(first - 1).

    Even rows rise and odd ones fall; turned by 1, it is the other way round. Batcher 1968.
    """
    lanes = tl.arange(0, 2**LOG)[None, :]
    places = (tl.arange(0, x.shape[0])[:, None] + turned) * 2**LOG + lanes
    for stage in range(first, LOG + 1):
        falls = (places >> stage) & 1
        for step in range(1, stage + 1):
            bit = stage - step
            other = tl.gather(x, tl.broadcast_to(lanes ^ (1 << bit), x.shape), 1)
            is_upper = (lanes >> bit) & 1
            x = tl.where(is_upper != falls, tl.maximum(x, other), tl.minimum(x, other))
    return x


@triton.jit
def _merge(best, ranks, LOG: tl.constexpr, HALVINGS: tl.constexpr):
    """The 2**LOG highest of both, falling as `best` does, of 2**HALVINGS times more ranks."""
    rows = _sort_rows(tl.reshape(ranks, [2**HALVINGS, 2**LOG]), 1, 0, LOG)
    # Of two rows, one rising and one falling, the larger elements are the highest of both.
    for halving in tl.static_range(1, HALVINGS + 1):
        rows = tl.max(tl.reshape(rows, [2 ** (HALVINGS - halving), 2, 2**LOG]), axis=1)
        rows = _sort_rows(rows, LOG, 0, LOG)
    rows = _sort_rows(tl.maximum(best[None, :], rows), LOG, 1, LOG)
    return tl.reshape(rows, [2**LOG])


@triton.jit
def _parents(beam, is_child, LANES: tl.constexpr):
    """Lane of the prefix without its last unit, LANES where it is not in the beam."""
    parent = tl.full([LANES], LANES, tl.int32)
    for first in range(0, LANES, _AT_ONCE):
        some = first + tl.arange(0, _AT_ONCE)
        keys = tl.gather(beam.key, some, 0)
        equal = (beam.above[:, None] == keys[None, :]) & (keys != _ABSENT)[None, :]
        parent = tl.minimum(parent, tl.min(tl.where(equal, some[None, :], LANES), axis=1))
    return tl.where(is_child, parent, LANES)


@triton.jit(
    do_not_specialize=[
        *("T", "B", "K", "C", "V", "blank", "start"),
        *("stride_t", "stride_b", "units_t", "units_b", *Sizes._fields),
    ]
)
def search_kernel(
    log_probs,  # [T, B, V], any strides
    lengths,  # [B] int64; below 0 is 0, above T is T
    units,  # [T, B, C] int64, its last stride 1
    marks,  # [B, K, V, R] int32, zeros
    at_blank_out,  # out: [B, K] after the last frame, as the four that follow
    at_label_out,
    extra_out,
    context_out,
    node_out,
    ways,  # out: [T, B, 2K] int64
    words,  # out: [T, B, K] int64
    T,
    B,
    K,
    C,
    V,
    blank,
    stride_t,
    stride_b,
    stride_v,
    units_t,
    units_b,
    start,  # state of the language model
    scoring,  # a `Scoring`
    arcs,  # these and the following are `Sizes`
    model_words,
    order,
    contexts,
    edges,
    tree_units,
    hotword_units,
    R: tl.constexpr,
    LOG_ADD: tl.constexpr,
    LOG: tl.constexpr,  # 2**LOG lanes, at least K and 16
    HALVINGS: tl.constexpr,  # a tile has 2**HALVINGS times more
):
    """One program an utterance: the beam after its last frame, and the ways into all states."""
    b = tl.program_id(0).to(tl.int64)
    sizes = Sizes(arcs, model_words, order, contexts, edges, tree_units, hotword_units)
    LANES: tl.constexpr = 2**LOG
    TILE: tl.constexpr = 2 ** (LOG + HALVINGS)
    lanes = tl.arange(0, LANES)
    inside = lanes < K
    lowest = tl.full([LANES], _LOWEST, tl.int64)
    never = tl.full([LANES], _NEVER, tl.float32)
    zeros = tl.zeros([LANES], tl.int64)
    beam = Beam(
        at_blank=tl.where(lanes == 0, 0.0, never),
        at_label=never,
        taken=tl.full([LANES], blank * R, tl.int32),
        word=tl.full([LANES], -1, tl.int32),
        key=tl.where(lanes == 0, zeros, _ABSENT),
        above=zeros,
        extra=tl.zeros([LANES], tl.float32),
        context=zeros + start,
        node=zeros,
    )
    marked = marks + b * K * V * R
    for t in range(0, tl.minimum(tl.load(lengths + b), T)):
        row = log_probs + t * stride_t + b * stride_b
        listed = units + t * units_t + b * units_b
        frame = Frame(row, stride_v, listed, C, V, blank)

        # Prefixes that stay what they are; one whose parent is in the beam is entered from there.
        last = beam.taken // R
        is_child = last != blank
        parent = _parents(beam, is_child, LANES)
        has_parent = parent < LANES
        parent = tl.where(has_parent, parent, 0)
        heard = _heard(frame, last, inside)
        before, entry = _enter(beam, parent, last, V, R, LOG_ADD)
        entered = tl.where(has_parent, before + heard, _NEVER)
        held = beam.at_label + heard
        total = _combine(beam.at_blank, beam.at_label, LOG_ADD)
        kept_blank = total + tl.load(row + tl.cast(blank, tl.int64) * stride_v)
        kept_label = _combine(held, entered, LOG_ADD)
        likelier = 2 * lanes + (beam.at_label > beam.at_blank).to(tl.int32)
        blank_way = likelier.to(tl.int64) * V + blank
        label_way = tl.where(held >= entered, (2 * lanes + 1).to(tl.int64) * V + blank, entry)
        ranks = _rank(_combine(kept_blank, kept_label, LOG_ADD) + beam.extra, lanes)
        best = _merge(lowest, tl.where(inside, ranks, _LOWEST), LOG, 0)

        # Prefixes that are new: extended by a unit, and not in the beam yet.
        tl.debug_barrier()  # all have read the marks of the frame before
        now = tl.cast(t + 1, tl.int32)
        tl.store(_mark(marked, parent, beam.taken, V, R), now, mask=has_parent)
        tl.debug_barrier()
        for first in range(0, K * C * R, TILE):
            tile = first + tl.arange(0, TILE)
            wanted = tile < K * C * R
            rivals = _ranked(beam, frame, scoring, sizes, tile, wanted, marked, now, K, R, LOG_ADD)
            if tl.max(rivals) > tl.min(tl.where(inside, best, _HIGHEST)):
                best = _merge(best, rivals, LOG, HALVINGS)

        number = ((best & _NUMBER) ^ _NUMBER).to(tl.int32)
        alive = inside & ((best >> 32) > _IMPOSSIBLE)
        is_new = alive & (number >= K)
        new = _extend(beam, frame, scoring, sizes, number - K, is_new, R, LOG_ADD)
        origin = tl.where(is_new, new.parent, tl.where(alive, number, 0))
        kept_key = tl.gather(beam.key, origin, 0)
        taken = tl.where(is_new, new.taken, tl.gather(beam.taken, origin, 0))
        longer = (kept_key ^ (kept_key >> 29)) * _MIX + taken + 1
        at_blank = tl.gather(kept_blank, origin, 0)
        at_label = tl.where(is_new, new.score, tl.gather(kept_label, origin, 0))
        beam = Beam(
            at_blank=tl.where(alive & (is_new == 0), at_blank, _NEVER),
            at_label=tl.where(alive, at_label, _NEVER),
            taken=tl.where(alive, taken, blank * R),
            word=tl.where(is_new, new.word, tl.gather(beam.word, origin, 0)),
            key=tl.where(alive, tl.where(is_new, longer, kept_key), _ABSENT),
            above=tl.where(is_new, kept_key, tl.gather(beam.above, origin, 0)),
            extra=tl.where(is_new, new.extra, tl.gather(beam.extra, origin, 0)),
            context=tl.where(is_new, new.context, tl.gather(beam.context, origin, 0)),
            node=tl.where(is_new, new.node, tl.gather(beam.node, origin, 0)),
        )
        place = (t * B + b) * K + lanes
        label_way = tl.where(is_new, new.way, tl.gather(label_way, origin, 0))
        tl.store(ways + 2 * place, tl.gather(blank_way, origin, 0), mask=inside)
        tl.store(ways + 2 * place + 1, label_way, mask=inside)
        tl.store(words + place, beam.word.to(tl.int64), mask=inside)
    out = b * K + lanes
    tl.store(at_blank_out + out, beam.at_blank, mask=inside)
    tl.store(at_label_out + out, beam.at_label, mask=inside)
    tl.store(extra_out + out, beam.extra, mask=inside)
    tl.store(context_out + out, beam.context, mask=inside)
    tl.store(node_out + out, beam.node, mask=inside)


@triton.jit(do_not_specialize=["T", "B", "K", "V", "N"])
def trace_kernel(
    ways,  # [T, B, 2K]
    words,  # [T, B, K]
    lengths,  # [B]
    states,  # [B, N] int64, after the last frame
    spoken,  # out: [B, N, T] int64, unit of each frame; as it was past the end
    ended,  # out: [B, N, T] int64, word of the prefix at each frame
    T,
    B,
    K,
    V,
    N,
    BLOCK: tl.constexpr,  # power of two, at least N
):
    """One program an utterance: back along the ways of its N best."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    inside = n < N
    state = tl.load(states + b * N + n, mask=inside, other=0)
    frames = tl.minimum(tl.load(lengths + b), T)
    for back in range(1, frames + 1):
        t = frames - back
        row = (t * B + b) * K
        out = (b * N + n) * T + t
        way = tl.load(ways + 2 * row + state, mask=inside, other=0)
        word = tl.load(words + row + state // 2, mask=inside, other=-1)
        tl.store(spoken + out, way % V, mask=inside)
        tl.store(ended + out, word, mask=inside)
        state = way // V
