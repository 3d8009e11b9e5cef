"""What the forward and the backward recurrence share: who owns what, weights, products."""

import triton
import triton.language as tl

from kernels.backends.triton.sync import pairs, peek, wait


@triton.jit
def tanh(x):
    """Finite for every `x`, and near 0 not the difference of rounded numbers of twice its size.

    2 sigmoid(2 x) - 1 has more than twice the error where a GPU's exp and quotient are rough.
    """
    t = tl.exp(-2 * tl.abs(x))
    size = (1 - t) / (1 + t)
    return tl.where(x < 0, -size, size)


@triton.constexpr_function
def gate_count(cell):
    """Blocks of H rows in W_hh."""
    return {"lstm": 4, "cifg": 3, "gru": 3}.get(cell, 1)


@triton.jit
def load_peepholes(peephole, units, H: tl.constexpr, GATES: tl.constexpr):
    """Of one direction, [GATES-1, H]: float32 [1, BLOCK_H] of i, f and o; a CIFG's f is its i."""
    i = tl.load(peephole + units, mask=units < H, other=0.0)
    f = tl.load(peephole + (GATES - 3) * H + units, mask=units < H, other=0.0)
    o = tl.load(peephole + (GATES - 2) * H + units, mask=units < H, other=0.0)
    return i.to(tl.float32)[None, :], f.to(tl.float32)[None, :], o.to(tl.float32)[None, :]


@triton.jit
def share(B, first_group, H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """What this program owns: (direction, rows [BLOCK_B], units [BLOCK_H]).

    Programs of a group, which wait for each other, have neighbouring numbers.
    """
    SLICES: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    program = tl.program_id(0)
    group = first_group + program // SLICES
    units = (program % SLICES) * BLOCK_H + tl.arange(0, BLOCK_H)
    return tl.program_id(1), group * BLOCK_B + tl.arange(0, BLOCK_B), units


@triton.jit
def frame_of(step, length, direction):
    """Frame at which an utterance of `length` stands at `step`, of those before its end."""
    return tl.where(direction == 0, step, length - 1 - step)


@triton.jit
def column_tile(
    w_hh,  # of one direction: [G*H, H]
    units,  # [BLOCK_H]
    chunk,
    CELL: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile [BLOCK_K, WIDTH * BLOCK_H] of W_hh^T for the forward recurrence.

    WIDTH gates are side by side: 1, or 4 of which all but one may be there. Column
    (half, unit, bit) belongs to gate 2 * half + bit: with four warps all gates of a unit then come
    out in one thread, see `split_gates`.
    """
    GATES: tl.constexpr = gate_count(CELL)
    WIDTH: tl.constexpr = 1 if GATES == 1 else 4
    column = tl.arange(0, WIDTH * BLOCK_H)
    unit = tl.min(units, axis=0) + column
    gate = column * 0
    if WIDTH == 4:
        unit = tl.min(units, axis=0) + (column // 2) % BLOCK_H
        gate = 2 * (column // (2 * BLOCK_H)) + column % 2
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (k < H)[:, None] & ((unit < H) & (gate < GATES))[None, :]
    offsets = (gate * H + unit)[None, :] * H + k[:, None]
    return tl.load(w_hh + offsets, mask=inside, other=0.0)


@triton.jit
def split_gates(products, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """[BLOCK_B, 4 * BLOCK_H] in the order of `column_tile` as four tiles [BLOCK_B, BLOCK_H]."""
    halves = products.reshape(BLOCK_B, 2, BLOCK_H, 2).permute(0, 2, 3, 1)
    low, high = tl.split(halves)  # gates 0 1, gates 2 3
    first, second = tl.split(low)
    third, fourth = tl.split(high)
    return first, second, third, fourth


@triton.jit
def row_tile(
    w_hh,  # of one direction: [G*H, H]
    units,  # [BLOCK_H]
    chunk,
    CELL: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile [DEPTH, BLOCK_K, BLOCK_H] of W_hh for the backward recurrence.

    DEPTH gates are in a stack: 1, or 4 of which all but one may be there. Their products are done
    side by side, by different warps, and then added. A GRU hands over n, r, z, while the rows of
    W_hh are r, z, n.
    """
    GATES: tl.constexpr = gate_count(CELL)
    DEPTH: tl.constexpr = 1 if GATES == 1 else 4
    level = tl.arange(0, DEPTH)[:, None, None]
    gate = (level + (2 if CELL == "gru" else 0)) % GATES
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)[None, :, None]
    inside = (k < H) & (level < GATES) & (units < H)[None, None, :]
    offsets = (gate * H + k) * H + units[None, None, :]
    return tl.load(w_hh + offsets, mask=inside, other=0.0)


@triton.jit
def all_tiles(
    TILE: tl.constexpr,  # column_tile or row_tile, as what follows is theirs
    w_hh,
    units,
    CELL: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tiles of a program, chunk after chunk, to be kept on chip."""
    tiles = ()
    for chunk in tl.static_range((H + BLOCK_K - 1) // BLOCK_K):
        tiles = tiles + (TILE(w_hh, units, chunk, CELL, H, BLOCK_H, BLOCK_K),)
    return tiles


@triton.jit
def last_of(values, like):
    """[K] as [1, K] or [1, 1, K], of as many dimensions as `like`."""
    if len(like.shape) == 3:
        return values[None, None, :]
    else:
        return values[None, :]


@triton.jit
def received_product(
    source,  # of integers: first element of what this direction hands over
    rows,  # int64 offsets, [BLOCK_B, 1] or [DEPTH, BLOCK_B, 1]
    rows_ok,  # likewise
    weights,  # tiles, chunk after chunk
    limit,
    DTYPE: tl.constexpr,  # of what is handed over
    DOT: tl.constexpr,  # of the factors
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,  # chunks that are loaded before the first of them is waited for
    POLL: tl.constexpr,
):
    """Rows that other programs write, times the weights: (float32 product, `limit`).

    Loads start AHEAD of the waits, so that their round trips overlap.
    """
    CHUNKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    PAIRS: tl.constexpr = DTYPE.primitive_bitwidth == 16 and H % 2 == 0
    WIDTH: tl.constexpr = H // 2 if PAIRS else H
    BLOCK: tl.constexpr = BLOCK_K // 2 if PAIRS else BLOCK_K
    if PAIRS:
        source = source.to(tl.pointer_type(tl.int32), bitcast=True)
        rows = rows >> 1
    columns = last_of(tl.arange(0, BLOCK), rows)
    looks = ()
    for n in tl.static_range(min(AHEAD, CHUNKS)):
        k = n * BLOCK + columns
        looks = looks + (peek(source + rows + k, rows_ok & (k < WIDTH)),)
    for n in tl.static_range(CHUNKS):
        bits = looks[n]
        k = n * BLOCK + columns
        if POLL:
            bits, limit = wait(bits, source + rows + k, rows_ok & (k < WIDTH), limit, PAIRS)
        if n + AHEAD < CHUNKS:
            k += AHEAD * BLOCK
            looks = looks + (peek(source + rows + k, rows_ok & (k < WIDTH)),)
        if PAIRS:
            bits = pairs(bits)
        tile = bits.to(DTYPE, bitcast=True).to(DOT)
        if n == 0:
            total = tl.dot(tile, weights[n].to(DOT), input_precision=PRECISION)
        else:
            total = tl.dot(tile, weights[n].to(DOT), total, input_precision=PRECISION)
    return total, limit


@triton.jit
def streamed_product(
    total,  # zeros, float32
    source,  # as for `received_product`; of a launch before
    rows,
    rows_ok,
    TILE: tl.constexpr,  # column_tile or row_tile, as the two that follow are theirs
    w_hh,
    units,
    CELL: tl.constexpr,
    DTYPE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """As `received_product` where all is there, with weights that need not fit on chip."""
    columns = last_of(tl.arange(0, BLOCK_K), rows)
    for chunk in range((H + BLOCK_K - 1) // BLOCK_K):
        k = chunk * BLOCK_K + columns
        tile = peek(source + rows + k, rows_ok & (k < H)).to(DTYPE, bitcast=True).to(DOT)
        weights = TILE(w_hh, units, chunk, CELL, H, BLOCK_H, BLOCK_K).to(DOT)
        total = tl.dot(tile, weights, total, input_precision=PRECISION)
    return total
