"""The recurrence as torch operators: eager, autograd, torch.compile and CUDA graphs see these.

`kernels::recurrence` is one layer, all directions: a matrix product for W x + b, then the
recurrence. `kernels::recurrence_backward` is the recurrence backwards, then the products that
give the gradients of input and weights. Both are deterministic bit for bit.
"""

from typing import Any, cast

import torch
from torch import Tensor

from kernels.backends.triton.backward import backward_kernel
from kernels.backends.triton.forward import forward_kernel
from kernels.backends.triton.launch import (
    DTYPES,
    dtype_name,
    empty_until_written,
    interpreted,
    never_empty,
    plan_for,
    run,
)
from kernels.backends.triton.plan import Problem
from kernels.cells import GATES, Cell

#: What the forward pass keeps for the backward one, beside y: nothing; the gates, in the
#: buffer where they were computed; or only c (LSTM), so that the gates are computed again.
SAVES = ("nothing", "gates", "state")


def _past(lengths: Tensor, T: int) -> Tensor:
    return torch.arange(T, device=lengths.device).unsqueeze(-1) >= lengths  # [T, B]


def _starts(lengths: Tensor, N: int) -> list[Tensor]:
    """[B] the frame of step 0, for each direction."""
    return [torch.zeros_like(lengths), lengths - 1][:N]


def _keeps_state(cell: str, save: str) -> bool:
    """Whether `saved` holds something: c of an LSTM always, U_n h of a GRU with its gates."""
    needed = {"lstm": ("gates", "state"), "gru": ("gates",)}
    return save in needed.get(cell, ())


def _sum(rows: Tensor) -> Tensor:
    """Over the first dimension, in float32 whatever the dtype."""
    return rows.sum(0, dtype=torch.float32).to(rows.dtype)


def _constants(cell: Cell, H: int, dtype: torch.dtype) -> dict[str, Any]:
    # As torch's own products outside the kernel: torch.set_float32_matmul_precision.
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    # The interpreter multiplies the bit patterns of bfloat16.
    dot = "float32" if interpreted() else dtype_name(dtype)
    return {"CELL": cell, "H": H, "DOT": DTYPES[dot], "PRECISION": precision}


@torch.library.custom_op("kernels::recurrence", mutates_args=())
def recurrence(
    x: Tensor,  # [T, B, D]
    w_ih: Tensor,  # [N*G*H, D]
    w_hh: Tensor,  # [N, G*H, H]
    bias: Tensor | None,  # [N*G*H], all that is added to W x
    bias_hn: Tensor | None,  # [N, H], GRU: the bias inside the reset gate's product
    first: Tensor | None,  # [N, B, G*H], added to the gates of step 0
    h_0: Tensor,  # [N, B, H]
    c_0: Tensor | None,  # [N, B, H], LSTM
    lengths: Tensor,  # [B] int64
    cell: str,
    save: str,  # one of SAVES
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y [T, B, N*H], h_n, c_n [N, B, H], gates [T, B, N, G, H], saved [T, B, N, H]).

    The last two are what `save` asks for, else empty; so is c_n without c_0.
    """
    T, B, _ = x.shape
    N, _, H = w_hh.shape
    kind = cast(Cell, cell)
    gates = _gate_arguments(x, w_ih, bias, N)
    if first is not None:
        for n, start in enumerate(_starts(lengths, N)):
            gates[start, torch.arange(B, device=x.device), n] += first[n]
    y = empty_until_written(_past(lengths, T), (T, B, N, H), x.dtype)
    keep = _keeps_state(cell, save)
    saved = x.new_empty((T, B, N, H) if keep else 0)
    h_state = h_0.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    c_state = c_0 if c_0 is None else c_0.to(torch.float32, copy=True).contiguous()
    if cell == "gru":
        bias_hn = h_0.new_zeros(N, H) if bias_hn is None else bias_hn.contiguous()
    problem = Problem("forward", kind, B, H, N, dtype_name(x.dtype))
    run(
        forward_kernel,
        plan_for(problem, x.device),
        (
            gates,
            w_hh.contiguous(),
            bias_hn,
            never_empty(h_0),
            h_state,
            c_state,
            lengths.int(),
            y,
            saved,
        ),
        B,
        T,
        N,
        SAVE_GATES=save == "gates",
        SAVE_STATE=keep,
        **_constants(kind, H, x.dtype),
    )
    c_n = x.new_empty(0) if c_state is None else c_state.to(x.dtype, copy=True)
    kept = gates if save == "gates" else x.new_empty(0)
    return y.view(T, B, N * H), h_state.to(x.dtype, copy=True), c_n, kept, saved


def _gate_arguments(x: Tensor, w_ih: Tensor, bias: Tensor | None, N: int) -> Tensor:
    """W x + b of all frames and directions, [T, B, N, G*H]."""
    T, B, D = x.shape
    flat = x.reshape(T * B, D)
    product = flat @ w_ih.t() if bias is None else torch.addmm(bias, flat, w_ih.t())
    return product.view(T, B, N, -1)


@recurrence.register_fake
def _(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    bias_hn: Tensor | None,
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    lengths: Tensor,
    cell: str,
    save: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, _ = x.shape
    N, GH, H = w_hh.shape
    keep = _keeps_state(cell, save)
    return (
        x.new_empty(T, B, N * H),
        x.new_empty(N, B, H),
        x.new_empty(0) if c_0 is None else x.new_empty(N, B, H),
        x.new_empty((T, B, N, GH) if save == "gates" else 0),
        x.new_empty((T, B, N, H) if keep else 0),
    )


@torch.library.custom_op("kernels::recurrence_backward", mutates_args=())
def recurrence_backward(
    dy: Tensor,  # [T, B, N*H]
    dh_n: Tensor,  # [N, B, H]
    dc_n: Tensor,  # [N, B, H], or empty
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    bias_hn: Tensor | None,
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    lengths: Tensor,
    y: Tensor,
    gates: Tensor,
    saved: Tensor,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, w_ih, w_hh, bias, bias_hn, first, h_0, c_0), of which some may be empty."""
    T, B, D = x.shape
    N, GH, H = w_hh.shape
    kind = cast(Cell, cell)
    parts = 4 if cell == "gru" else GATES[kind]
    y = y.view(T, B, N, H)
    raw = gates.numel() == 0 and GATES[kind] > 1
    if raw:
        gates, saved = _gates_again(x, w_ih, w_hh, bias, bias_hn, first, h_0, lengths, y, saved)
    dgates = empty_until_written(_past(lengths, T), (T, B, N, parts, H), x.dtype)
    dh_state = dh_n.to(torch.float32, copy=True).contiguous()
    dc_state = None if c_0 is None else dc_n.to(torch.float32, copy=True).contiguous()
    c_start = None if c_0 is None else c_0.float().contiguous()
    problem = Problem("backward", kind, B, H, N, dtype_name(x.dtype))
    run(
        backward_kernel,
        plan_for(problem, x.device),
        (
            *(dy.contiguous(), gates, saved, y, h_0.contiguous(), c_start, w_hh.contiguous()),
            *(dh_state, dc_state, lengths.int(), dgates),
        ),
        B,
        T,
        N,
        RAW=raw,
        **_constants(kind, H, x.dtype),
    )

    # GRU: parts n inside r, r, z, n; the first three belong to W_hh, the last three to W_ih.
    inner = dgates[..., : GH // H, :].flatten(3)  # [T, B, N, G*H], gradient through W_hh
    outer = dgates[..., parts - GH // H :, :].reshape(T * B, N * GH)
    flat = x.reshape(T * B, D)
    dw_ih = outer.t() @ flat
    dbias = x.new_empty(0) if bias is None else _sum(outer)
    dx = (outer @ w_ih).view(T, B, D)
    rows = torch.arange(B, device=x.device)
    dw_hh, dh_0, dfirst = torch.empty_like(w_hh), torch.empty_like(h_0), []
    for n, start in enumerate(_starts(lengths, N)):
        begin = inner[start, rows, n]  # [B, G*H]
        later, earlier = (
            (inner[1:, :, n], y[:-1, :, n]) if n == 0 else (inner[:-1, :, n], y[1:, :, n])
        )
        dw = later.flatten(0, 1).t() @ earlier.flatten(0, 1) + begin.t() @ h_0[n]
        dw_hh[n] = dw.roll(-H, 0) if cell == "gru" else dw
        w = w_hh[n].roll(H, 0) if cell == "gru" else w_hh[n]
        dh_0[n] = dh_state[n] + begin @ w
        dfirst.append(outer.view(T, B, N, GH)[start, rows, n])
    return (
        dx,
        dw_ih,
        dw_hh,
        dbias,
        x.new_empty(0) if bias_hn is None else _sum(dgates[..., 0, :].flatten(0, 1)),
        x.new_empty(0) if first is None else torch.stack(dfirst),
        dh_0,
        x.new_empty(0) if dc_state is None else dc_state.to(x.dtype, copy=True),
    )


def _gates_again(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    bias_hn: Tensor | None,
    first: Tensor | None,
    h_0: Tensor,
    lengths: Tensor,
    y: Tensor,  # [T, B, N, H]
    saved: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gates' arguments and `saved`, from all the h that are known by now: two products."""
    N, GH, H = w_hh.shape
    gates = _gate_arguments(x, w_ih, bias, N)
    inner = gates
    if GH == 3 * H:  # GRU: the product of n stands alone
        inner = gates.new_zeros(*gates.shape[:3], GH)
        if bias_hn is not None:
            inner[..., 2 * H :] = bias_hn
    rows = torch.arange(y.shape[1], device=x.device)
    for n, start in enumerate(_starts(lengths, N)):
        w = w_hh[n].t()
        later, earlier = (
            (inner[1:, :, n], y[:-1, :, n]) if n == 0 else (inner[:-1, :, n], y[1:, :, n])
        )
        later.flatten(0, 1).addmm_(earlier.flatten(0, 1), w)
        inner[start, rows, n] += h_0[n] @ w
        if first is not None:
            gates[start, rows, n] += first[n]
    if GH == 3 * H:
        gates[..., : 2 * H] += inner[..., : 2 * H]
        saved = inner[..., 2 * H :].contiguous()
    return gates, saved


@recurrence_backward.register_fake
def _(
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    bias_hn: Tensor | None,
    first: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    lengths: Tensor,
    y: Tensor,
    gates: Tensor,
    saved: Tensor,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else torch.empty_like(tensor)

    T, B, D = x.shape
    w = (torch.empty_like(w_ih), torch.empty_like(w_hh))
    return x.new_empty(T, B, D), *w, like(bias), like(bias_hn), like(first), like(h_0), like(c_0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, cell, _ = inputs
    y, _, _, gates, saved = output
    ctx.save_for_backward(*tensors, y, gates, saved)
    ctx.mark_non_differentiable(gates, saved)
    ctx.cell = cell


def _backward(ctx: Any, dy: Tensor, dh_n: Tensor, dc_n: Tensor, *_: Any) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    gradients = recurrence_backward(dy, dh_n, dc_n, *tensors, ctx.cell)
    present = [t is not None for t in tensors[:8]]
    kept = [g if there else None for g, there in zip(gradients, present, strict=True)]
    return (*kept, None, None, None)


def _no_double_backward(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "the triton backend has no double backward; use backend='reference' for gradients of "
        "gradients"
    )


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_no_double_backward)
