"""What the forward and the backward recurrence share: who owns what, weights, products."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Finite for every finite `x`, unlike a quotient of exponentials."""
    return 2 * tl.sigmoid(2 * x) - 1


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
def load_weights(
    w_hh,  # of one direction: [G*H, H]
    units,  # [BLOCK_H]
    H: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # W_hh^T, as the forward recurrence needs it
):
    """Tiles [BLOCK_K, BLOCK_H] of the columns `units`: gate after gate, chunk after chunk."""
    CHUNKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    weights = ()
    for n in tl.static_range(GATES * CHUNKS):
        k = (n % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
        row = (n // CHUNKS) * H
        if TRANSPOSED:
            offsets = (row + units)[None, :] * H + k[:, None]
        else:
            offsets = (row + k)[:, None] * H + units[None, :]
        inside = (k < H)[:, None] & (units < H)[None, :]
        weights = weights + (tl.load(w_hh + offsets, mask=inside, other=0.0),)
    return weights


@triton.jit
def product(
    tiles,
    FIRST_TILE: tl.constexpr,
    weights,
    FIRST_WEIGHT: tl.constexpr,
    CHUNKS: tl.constexpr,
    DOT: tl.constexpr,  # dtype of the factors
    PRECISION: tl.constexpr,
):
    """Sum of tiles[k] @ weights[k] over CHUNKS of k: float32 [BLOCK_B, BLOCK_H]."""
    total = tl.dot(
        tiles[FIRST_TILE].to(DOT), weights[FIRST_WEIGHT].to(DOT), input_precision=PRECISION
    )
    for k in tl.static_range(1, CHUNKS):
        total = tl.dot(
            tiles[FIRST_TILE + k].to(DOT),
            weights[FIRST_WEIGHT + k].to(DOT),
            total,
            input_precision=PRECISION,
        )
    return total
