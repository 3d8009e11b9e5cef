"""Hand-over between programs of one launch: the data is the flag.

A buffer that programs exchange is filled beforehand with EMPTY, all bits one: a NaN that no
arithmetic gives (hardware NaNs are 0x7FFF...), and that `filled` keeps out for good. Whoever needs
a tile loads it past the L1 cache until no element is EMPTY: one round trip to L2, no atomics and no
fence, because each element carries its own flag.

A wait that never ends would hang the card. After `limit` polls, seconds where an honest wait takes
microseconds, a program gives up waiting for good and goes on with the NaNs that it has, so that
those who wait for it are released; the launch then says so, see `launch`.
"""

import triton
import triton.language as tl

EMPTY = -1
POLL_LIMIT = 1 << 22


@triton.jit
def integers(pointer):
    """The same pointer, to integers of the elements' width."""
    if pointer.dtype.element_ty.primitive_bitwidth == 32:
        return pointer.to(tl.pointer_type(tl.int32), bitcast=True)
    else:
        return pointer.to(tl.pointer_type(tl.int16), bitcast=True)


@triton.jit
def hand_over(pointers, values, DTYPE: tl.constexpr, mask):
    """Store a tile, as DTYPE, for those who wait for it: in L2, where they look."""
    tl.store(pointers, filled(values.to(DTYPE)), mask=mask, cache_modifier=".cg")


@triton.jit
def filled(values):
    """`values` as integers, none of them EMPTY: what a writer stores."""
    if values.dtype.primitive_bitwidth == 32:
        bits = values.to(tl.int32, bitcast=True)
        return tl.where(bits == -1, 0x7FFFFFFF, bits)
    else:
        bits = values.to(tl.int16, bitcast=True)
        return tl.where(bits == -1, tl.full(bits.shape, 0x7FFF, tl.int16), bits)


@triton.jit
def peek(pointers, mask):
    """What stands in a tile now, elements outside `mask` as 0."""
    return tl.load(pointers, mask=mask, other=0, cache_modifier=".cv", volatile=True)


@triton.jit
def pairs(tile):
    """[..., 2 K] of 16 bits that stand in [..., K] of 32."""
    both = tl.join(tile.to(tl.int16), (tile >> 16).to(tl.int16))
    if len(tile.shape) == 3:
        return tl.reshape(both, [tile.shape[0], tile.shape[1], 2 * tile.shape[2]])
    else:
        return tl.reshape(both, [tile.shape[0], 2 * tile.shape[1]])


@triton.jit
def missing(bits, PAIRS: tl.constexpr):
    """1 if any element is still EMPTY, else 0."""
    if PAIRS:
        empty = ((bits & 0xFFFF) == 0xFFFF) | ((bits >> 16) == -1)
    else:
        empty = bits == -1
    return tl.max(tl.ravel(empty.to(tl.int32)), axis=0)


@triton.jit
def wait(bits, pointers, mask, limit, PAIRS: tl.constexpr):
    """Peek, after a first look `bits`, until a tile is filled: (tile, `limit`, 0 if given up)."""
    empty = missing(bits, PAIRS)
    polls = 0
    while (empty != 0) & (polls < limit):
        bits = peek(pointers, mask)
        empty = missing(bits, PAIRS)
        polls += 1
    return bits, tl.where(empty != 0, 0, limit)
