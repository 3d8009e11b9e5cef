"""The forward recurrence: both directions of one layer over all time steps in one launch.

A program owns BLOCK_H hidden units of one direction for BLOCK_B utterances. Its slice of W_hh
stays on chip and its states in registers from the first step to the last; h[t] reaches the other
programs through the output `y` itself, see `sync`; with recurrent dropout, where they need
mask * h, through a second buffer. Utterances of different groups never wait for each other.

With KEEP off a launch is one step, nothing waits, and the weights stream through: for grids that
cannot be resident, and for weights that do not fit.

At step s the forward direction stands at frame s of each utterance, the reverse one at frame
length - 1 - s. Past its end a state stays what it was, and nothing is stored.
"""

import triton
import triton.language as tl

from kernels.backends.triton.sync import hand_over, integers
from kernels.backends.triton.tiles import (
    all_tiles,
    column_tile,
    frame_of,
    gate_count,
    load_peepholes,
    received_product,
    share,
    split_gates,
    streamed_product,
    tanh,
)


@triton.jit(do_not_specialize=["B", "first_group", "first_step", "last_step", "limit"])
def forward_kernel(
    gates,  # [T, B, N, G, H] in: W x + b; out, if SAVE_GATES: the gates, for the backward pass
    w_hh,  # [N, G*H, H]
    bias_hn,  # [N, H] GRU: the bias inside the reset gate's product
    peephole,  # [N, G-1, H] LSTM: of the gates in their order, g left out; if PEEPHOLE
    mask,  # [N, B, H] of h on its way into W_hh, if DROP
    h_0,  # [N, B, H] what step 0 reads, never EMPTY
    h_state,  # [N, B, H] float32, in and out
    c_state,  # [N, B, H] float32, in and out; LSTM
    lengths,  # [B] int32
    y,  # [T, B, N, H] out; unless DROP EMPTY beforehand
    handed,  # [T, B, N, H] out, EMPTY beforehand: y, or if DROP mask * y
    saved,  # [T, B, N, H] out, if SAVE_STATE; LSTM: c, GRU: U_n h + d_n
    lost,  # [1] int32: set to 1 where a wait was given up
    B,
    first_group,  # of the groups of BLOCK_B utterances
    first_step,
    last_step,  # not included
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
    SAVE_GATES: tl.constexpr,
    SAVE_STATE: tl.constexpr,
    KEEP: tl.constexpr,  # the weights on chip from step to step; off: a launch is one step
    POLL: tl.constexpr,
):
    """One program of the grid (slices * groups, directions)."""
    GATES: tl.constexpr = gate_count(CELL)
    LSTM: tl.constexpr = CELL == "lstm" or CELL == "cifg"
    WIDTH: tl.constexpr = 1 if GATES == 1 else 4
    DTYPE: tl.constexpr = y.dtype.element_ty
    direction, rows, units = share(B, first_group, H, BLOCK_B, BLOCK_H)
    length = tl.load(lengths + rows, mask=rows < B, other=0)
    w_hh += direction * (GATES * H * H)
    weights = ()
    if KEEP:
        weights = all_tiles(column_tile, w_hh, units, CELL, H, BLOCK_H, BLOCK_K)

    state = (direction * B + rows)[:, None].to(tl.int64) * H + units[None, :]
    inside = (rows < B)[:, None] & (units < H)[None, :]
    h = tl.load(h_state + state, mask=inside, other=0.0)
    c = h
    if LSTM:
        c = tl.load(c_state + state, mask=inside, other=0.0)
    bias = tl.zeros([BLOCK_H], tl.float32)
    if CELL == "gru":
        bias = tl.load(bias_hn + direction * H + units, mask=units < H, other=0.0).to(tl.float32)
    if PEEPHOLE:
        p_i, p_f, p_o = load_peepholes(peephole + direction * ((GATES - 1) * H), units, H, GATES)
    if DROP:
        kept = tl.load(mask + state, mask=inside, other=0.0).to(tl.float32)

    initial = integers(h_0 + direction * B.to(tl.int64) * H)
    output = integers(handed + direction * H)
    steps = 1  # of a constant number of one the compiler makes no loop
    if KEEP:
        steps = tl.minimum(last_step, tl.max(length, axis=0)) - first_step
    for done in range(0, steps):
        step = first_step + done
        active = step < length
        here = active[:, None] & (units < H)[None, :]
        row = frame_of(step, length, direction).to(tl.int64) * B + rows  # [BLOCK_B], of [T * B]
        at = (row * N + direction)[:, None] * (GATES * H) + units[None, :]
        x = ()
        for gate in tl.static_range(GATES):
            x = x + (tl.load(gates + at + gate * H, mask=here, other=0.0).to(tl.float32),)

        before = (frame_of(step - 1, length, direction).to(tl.int64) * B + rows) * (N * H)
        source = tl.where(step == 0, initial, output)
        before = tl.where(step == 0, rows.to(tl.int64) * H, before)
        from_rows = before[:, None]
        rows_ok = active[:, None]
        if KEEP:
            products, limit = received_product(
                source,
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
                tl.zeros([BLOCK_B, WIDTH * BLOCK_H], tl.float32),
                source,
                from_rows,
                rows_ok,
                column_tile,
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

        at_unit = (row * N + direction)[:, None] * H + units[None, :]
        if LSTM:
            if CELL == "lstm":
                u_i, u_f, u_g, u_o = split_gates(products, BLOCK_B, BLOCK_H)
            else:
                u_i, u_g, u_o, u_f = split_gates(products, BLOCK_B, BLOCK_H)
            i = x[0] + u_i
            if PEEPHOLE:
                i += p_i * c
            i = tl.sigmoid(i)
            g = tanh(x[GATES - 2] + u_g)
            if CELL == "lstm":
                f = x[1] + u_f
                if PEEPHOLE:
                    f += p_f * c
                f = tl.sigmoid(f)
                c = tl.where(here, f * c + i * g, c)
            else:
                c = tl.where(here, c + i * (g - c), c)
            o = x[GATES - 1] + u_o
            if PEEPHOLE:
                o += p_o * c
            o = tl.sigmoid(o)
            h = tl.where(here, o * tanh(c), h)
            if SAVE_GATES:
                tl.store(gates + at, i.to(DTYPE), mask=here)
                if CELL == "lstm":
                    tl.store(gates + at + H, f.to(DTYPE), mask=here)
                tl.store(gates + at + (GATES - 2) * H, g.to(DTYPE), mask=here)
                tl.store(gates + at + (GATES - 1) * H, o.to(DTYPE), mask=here)
        elif CELL == "gru":
            u_r, u_z, u_n, _ = split_gates(products, BLOCK_B, BLOCK_H)
            r = tl.sigmoid(x[0] + u_r)
            z = tl.sigmoid(x[1] + u_z)
            u = u_n + bias[None, :]
            n = tanh(x[2] + r * u)
            h = tl.where(here, (1 - z) * n + z * h, h)
            if SAVE_GATES:
                tl.store(gates + at, r.to(DTYPE), mask=here)
                tl.store(gates + at + H, z.to(DTYPE), mask=here)
                tl.store(gates + at + 2 * H, n.to(DTYPE), mask=here)
            if SAVE_STATE:
                tl.store(saved + at_unit, u.to(DTYPE), mask=here)
        else:
            a = x[0] + products
            if CELL == "rnn_tanh":
                a = tanh(a)
            else:
                a = tl.where(a <= 0, 0.0, a)  # tl.maximum would lose NaN
            h = tl.where(here, a, h)
        seen = h
        if DROP:
            tl.store(y + at_unit, h.to(DTYPE), mask=here)
            seen = h * kept
        hand_over(output + at_unit - direction * H, seen, DTYPE, here)
        if LSTM:
            if SAVE_STATE:
                tl.store(saved + at_unit, c.to(DTYPE), mask=here)

    tl.store(h_state + state, h, mask=inside)
    if LSTM:
        tl.store(c_state + state, c, mask=inside)
    if POLL:
        if limit == 0:
            tl.store(lost, 1)
