"""The backward recurrence (BPTT): from the gradient of `y` to those of the gates' arguments.

Laid out as the forward one, with time reversed: a program owns BLOCK_H units for BLOCK_B
utterances and keeps its columns of W_hh on chip; what the programs hand over are the gradients of
the gates' arguments, G times the bytes of h. All gradients of weights and inputs are large matrix
products of what this kernel writes, see `layer`.
"""

import triton
import triton.language as tl

from kernels.backends.triton.sync import hand_over, integers
from kernels.backends.triton.tiles import (
    all_tiles,
    frame_of,
    gate_count,
    load_peepholes,
    received_product,
    row_tile,
    share,
    streamed_product,
    tanh,
)


@triton.jit
def value(pointers, mask):
    """A tile in float32."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["B", "first_group", "first_step", "last_step", "limit"])
def backward_kernel(
    dy,  # [T, B, N, H]
    gates,  # [T, B, N, G, H] as the forward pass saved them; if RAW: the gates' arguments
    saved,  # [T, B, N, H] LSTM: c, GRU: U_n h + d_n
    y,  # [T, B, N, H] of the forward pass
    h_0,  # [N, B, H]
    c_0,  # [N, B, H] float32
    w_hh,  # [N, G*H, H]
    peephole,  # [N, G-1, H] LSTM: of the gates in their order, g left out; if PEEPHOLE
    mask,  # [N, B, H] of h on its way into W_hh, if DROP
    dh_state,  # [N, B, H] float32, in and out: what reaches h but through W_hh
    dc_state,  # [N, B, H] float32, in and out; LSTM
    lengths,  # [B] int32
    dgates,  # [T, B, N, P, H] out, EMPTY beforehand; P = G parts, GRU: n inside r, r, z, n
    lost,  # [1] int32: set to 1 where a wait was given up
    B,
    first_group,  # of the groups of BLOCK_B utterances
    first_step,
    last_step,  # not included; the first one to be done
    limit,
    CELL: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    DROP: tl.constexpr,
    RAW: tl.constexpr,
    KEEP: tl.constexpr,  # the weights on chip from step to step; off: a launch is one step
    POLL: tl.constexpr,
):
    """One program of the grid (slices * groups, directions)."""
    GATES: tl.constexpr = gate_count(CELL)
    LSTM: tl.constexpr = CELL == "lstm" or CELL == "cifg"
    PARTS: tl.constexpr = 4 if CELL == "gru" else GATES
    DEPTH: tl.constexpr = 1 if GATES == 1 else 4
    DTYPE: tl.constexpr = dgates.dtype.element_ty
    direction, rows, units = share(B, first_group, H, BLOCK_B, BLOCK_H)
    length = tl.load(lengths + rows, mask=rows < B, other=0)
    w_hh += direction * (GATES * H * H)
    weights = ()
    if KEEP:
        weights = all_tiles(row_tile, w_hh, units, CELL, H, BLOCK_H, BLOCK_K)

    state = (direction * B + rows)[:, None].to(tl.int64) * H + units[None, :]
    inside = (rows < B)[:, None] & (units < H)[None, :]
    dh_past = tl.load(dh_state + state, mask=inside, other=0.0)
    dc = dh_past
    if LSTM:
        dc = tl.load(dc_state + state, mask=inside, other=0.0)

    if PEEPHOLE:
        p_i, p_f, p_o = load_peepholes(peephole + direction * ((GATES - 1) * H), units, H, GATES)
    if DROP:
        kept = tl.load(mask + state, mask=inside, other=0.0).to(tl.float32)

    parts = tl.arange(0, DEPTH)[:, None, None]
    handed = integers(dgates + direction * (PARTS * H))
    steps = 1  # of a constant number of one the compiler makes no loop
    if KEEP:
        steps = tl.minimum(last_step, tl.max(length, axis=0)) - first_step
    for done in range(0, steps):
        step = first_step + steps - 1 - done
        active = step < length
        here = active[:, None] & (units < H)[None, :]
        row = frame_of(step, length, direction).to(tl.int64) * B + rows
        at = (row * N + direction)[:, None] * (GATES * H) + units[None, :]
        at_unit = (row * N + direction)[:, None] * H + units[None, :]
        before = frame_of(step - 1, length, direction).to(tl.int64) * B + rows
        at_before = (before * N + direction)[:, None] * H + units[None, :]
        begun = here & (step > 0)
        dh = dh_past + value(dy + at_unit, here)

        later = step + 1 < length  # of these rows the step after this one is done
        after = (frame_of(step + 1, length, direction).to(tl.int64) * B + rows) * (N * PARTS * H)
        from_rows = after[None, :, None] + parts * H
        rows_ok = later[None, :, None] & (parts < GATES)
        if KEEP:
            products, limit = received_product(
                handed,
                from_rows,
                rows_ok,
                weights,
                limit,
                DTYPE,
                DOT,
                PRECISION,
                H,
                BLOCK_K,
                AHEAD,
                POLL,
            )
        else:
            products = streamed_product(
                tl.zeros([DEPTH, BLOCK_B, BLOCK_H], tl.float32),
                handed,
                from_rows,
                rows_ok,
                row_tile,
                w_hh,
                units,
                CELL,
                DTYPE,
                DOT,
                PRECISION,
                H,
                BLOCK_H,
                BLOCK_K,
            )
        dh_seen = tl.sum(products, axis=0)
        if DROP:
            dh_seen *= kept
        dh += dh_seen

        out = integers(dgates) + (row * N + direction)[:, None] * (PARTS * H) + units[None, :]
        if LSTM:
            i = value(gates + at, here)
            g = value(gates + at + (GATES - 2) * H, here)
            o = value(gates + at + (GATES - 1) * H, here)
            if RAW:
                i = tl.sigmoid(i)
                g = tanh(g)
                o = tl.sigmoid(o)
            if CELL == "lstm":
                f = value(gates + at + H, here)
                if RAW:
                    f = tl.sigmoid(f)
            else:
                f = 1 - i
            c_tanh = tanh(value(saved + at_unit, here))
            c_before = value(saved + at_before, begun)
            c_before += tl.load(c_0 + state, mask=here & (step == 0), other=0.0)
            do = dh * c_tanh * o * (1 - o)
            dc_here = dc + dh * o * (1 - c_tanh * c_tanh)
            if PEEPHOLE:
                dc_here += do * p_o
            dc_past = dc_here * f
            if CELL == "lstm":
                di = dc_here * g * i * (1 - i)
                df = dc_here * c_before * f * (1 - f)
                hand_over(out + H, df, DTYPE, here)
                if PEEPHOLE:
                    dc_past += df * p_f
            else:
                di = dc_here * (g - c_before) * i * (1 - i)
            if PEEPHOLE:
                dc_past += di * p_i
            hand_over(out, di, DTYPE, here)
            hand_over(out + (GATES - 2) * H, dc_here * i * (1 - g * g), DTYPE, here)
            hand_over(out + (GATES - 1) * H, do, DTYPE, here)
            dc = tl.where(here, dc_past, dc)
            dh_past = tl.where(here, 0.0, dh_past)
        elif CELL == "gru":
            r = value(gates + at, here)
            z = value(gates + at + H, here)
            n = value(gates + at + 2 * H, here)
            u = value(saved + at_unit, here)
            if RAW:
                r = tl.sigmoid(r)
                z = tl.sigmoid(z)
                n = tanh(n + r * u)
            h_before = value(y + at_before, begun) + value(h_0 + state, here & (step == 0))
            dn = dh * (1 - z) * (1 - n * n)
            hand_over(out, dn * r, DTYPE, here)
            hand_over(out + H, dn * u * r * (1 - r), DTYPE, here)
            hand_over(out + 2 * H, dh * (h_before - n) * z * (1 - z), DTYPE, here)
            hand_over(out + 3 * H, dn, DTYPE, here)
            dh_past = tl.where(here, dh * z, dh_past)
        else:
            h = value(y + at_unit, here)
            if CELL == "rnn_tanh":
                hand_over(out, dh * (1 - h * h), DTYPE, here)
            else:
                hand_over(out, tl.where(h <= 0, 0.0, dh), DTYPE, here)
            dh_past = tl.where(here, 0.0, dh_past)

    tl.store(dh_state + state, dh_past, mask=inside)
    if LSTM:
        tl.store(dc_state + state, dc, mask=inside)
    if POLL:
        if limit == 0:
            tl.store(lost, 1)
