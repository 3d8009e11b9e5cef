"""The recurrence as torch operators, and as an autograd.Function where nobody looks at those.

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
from kernels.backends.triton.products import (
    add_recurrent_arguments,
    before,
    gate_arguments,
    past_end,
    starts,
    sum_rows,
    through_w_hh,
)
from kernels.cells import GATES, LSTMS, Cell
from kernels.context import observed
from kernels.precision import current_precision, float32_products, without_autocast

#: What the forward pass keeps for the backward one, beside y: nothing; the gates, in the
#: buffer where they were computed; or only c (LSTM), so that the gates are computed again.
SAVES = ("nothing", "gates", "state")


def _keeps_state(cell: str, save: str) -> bool:
    """Whether `saved` holds something: c of an LSTM always, U_n h of a GRU with its gates."""
    return save == "gates" if cell == "gru" else cell in LSTMS and save != "nothing"


def _constants(
    cell: str, w_hh: Tensor, peephole: Tensor | None, mask: Tensor | None, precision: str | None
) -> dict[str, Any]:
    # The interpreter multiplies the bit patterns of bfloat16.
    dot = "float32" if interpreted() else dtype_name(w_hh.dtype)
    return {
        "CELL": cell,
        "H": w_hh.shape[-1],
        "DOT": DTYPES[dot],
        "PRECISION": precision or current_precision(),
        "PEEPHOLE": peephole is not None,
        "DROP": mask is not None,
    }


def _laid_out(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy: contiguous, and where Triton need not compile anew for its address."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _gradient_of(state: Tensor, gradient: Tensor | None) -> Tensor:
    """A float32 copy of a final state's gradient, of zeros where there is none."""
    if gradient is None:
        return state.new_zeros(state.shape, dtype=torch.float32)
    return gradient.to(torch.float32, copy=True).contiguous()


def compute(
    x: Tensor,  # [T, B, D]
    w_ih: Tensor,  # [N*G*H, D]
    w_hh: Tensor,  # [N, G*H, H]
    bias: Tensor | None,  # [N*G*H], all that is added to W x
    bias_hn: Tensor | None,  # [N, H], GRU: the bias inside the reset gate's product
    first: Tensor | None,  # [N, B, G*H], added to the gates of step 0
    peephole: Tensor | None,  # [N, G-1, H], LSTM: of the gates in their order, g left out
    h_0: Tensor,  # [N, B, H]
    c_0: Tensor | None,  # [N, B, H], LSTM
    mask: Tensor | None,  # [N, B, H], of h on its way into W_hh; without gradient
    lengths: Tensor,  # [B] int64
    cell: str,
    save: str,  # one of SAVES
    precision: str | None,  # of float32 products: ieee or tf32; None: as torch's own
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y [T, B, N*H], h_n, c_n [N, B, H], gates [T, B, N, G, H], saved [T, B, N, H]).

    The last two are what `save` asks for, else empty; so is c_n without c_0.
    """
    T, B, _ = x.shape
    N, _, H = w_hh.shape
    with float32_products(precision):
        gates = gate_arguments(x, w_ih, bias, first, lengths, N)
    y = empty_until_written(past_end(lengths, T), (T, B, N, H), x.dtype)
    handed, h_start = (y, h_0) if mask is None else (y.clone(), mask * h_0)
    keep = _keeps_state(cell, save)
    saved = x.new_empty((T, B, N, H) if keep else 0)
    h_state = h_0.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    c_state = c_0 if c_0 is None else c_0.to(torch.float32, copy=True).contiguous()
    if cell == "gru":
        bias_hn = h_0.new_zeros(N, H) if bias_hn is None else bias_hn.contiguous()
    problem = Problem("forward", cast(Cell, cell), B, H, N, dtype_name(x.dtype))
    run(
        forward_kernel,
        plan_for(problem, x.device),
        (
            *(gates, w_hh.contiguous(), bias_hn, _contiguous(peephole), _contiguous(mask)),
            *(never_empty(h_start), h_state, c_state, lengths.int(), y, handed, saved),
        ),
        B,
        T,
        N,
        SAVE_GATES=save == "gates",
        SAVE_STATE=keep,
        **_constants(cell, w_hh, peephole, mask, precision),
    )
    c_n = x.new_empty(0) if c_state is None else c_state.to(x.dtype, copy=True)
    kept = gates if save == "gates" else x.new_empty(0)
    return y.view(T, B, N * H), h_state.to(x.dtype, copy=True), c_n, kept, saved


recurrence = torch.library.custom_op("kernels::recurrence", compute, mutates_args=())


@recurrence.register_fake
def _(x: Tensor, w_ih: Tensor, w_hh: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, c_0, _, _, cell, save, _ = others
    T, B, _ = x.shape
    N, GH, H = w_hh.shape
    return (
        x.new_empty(T, B, N * H),
        x.new_empty(N, B, H),
        x.new_empty(0) if c_0 is None else x.new_empty(N, B, H),
        x.new_empty((T, B, N, GH) if save == "gates" else 0),
        x.new_empty((T, B, N, H) if _keeps_state(cell, save) else 0),
    )


def compute_backward(
    dy: Tensor | None,  # [T, B, N*H]; None: zero, as of the next two
    dh_n: Tensor | None,  # [N, B, H]
    dc_n: Tensor | None,  # [N, B, H], or empty
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    bias_hn: Tensor | None,
    first: Tensor | None,
    peephole: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor,
    y: Tensor,
    gates: Tensor,
    saved: Tensor,
    cell: str,
    precision: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and all that follow it up to c_0; of what was None, empty."""
    T, B, D = x.shape
    N, GH, H = w_hh.shape
    kind = cast(Cell, cell)
    parts = 4 if cell == "gru" else GATES[kind]
    past = past_end(lengths, T)
    dy = torch.zeros_like(y) if dy is None else _laid_out(dy)
    y = y.view(T, B, N, H)
    seen, h_start = (y, h_0) if mask is None else (y * mask.transpose(0, 1), mask * h_0)
    c_before = None
    if peephole is not None and c_0 is not None:
        saved = saved.masked_fill(past[..., None, None], 0)  # 0 * NaN would be NaN
        c_before = before(saved, c_0, lengths)
    raw = gates.numel() == 0 and GATES[kind] > 1
    with float32_products(precision):
        if raw:
            gates = gate_arguments(x, w_ih, bias, first, lengths, N)
            inner = gates
            if cell == "gru":  # the product of n stands alone
                inner = torch.zeros_like(gates)
                if bias_hn is not None:
                    inner[..., 2 * H :] = bias_hn
            add_recurrent_arguments(inner, seen, h_start, w_hh, lengths)
            if cell == "gru":
                gates[..., : 2 * H] += inner[..., : 2 * H]
                saved = inner[..., 2 * H :].contiguous()
            if peephole is not None and c_before is not None:
                arguments = gates.view(T, B, N, -1, H)
                arguments[..., :-2, :] += peephole[:, :-1] * c_before.unsqueeze(3)
                arguments[..., -1, :] += peephole[:, -1] * saved

        dgates = empty_until_written(past, (T, B, N, parts, H), x.dtype)
        dh_state = _gradient_of(h_0, dh_n)
        dc_state = None if c_0 is None else _gradient_of(c_0, dc_n)
        c_start = None if c_0 is None else _laid_out(c_0.float())
        problem = Problem("backward", kind, B, H, N, dtype_name(x.dtype))
        run(
            backward_kernel,
            plan_for(problem, x.device),
            (
                *(dy, gates, saved, y, _laid_out(h_0), c_start, w_hh.contiguous()),
                *(_contiguous(peephole), _contiguous(mask)),
                *(dh_state, dc_state, lengths.int(), dgates),
            ),
            B,
            T,
            N,
            RAW=raw,
            **_constants(cell, w_hh, peephole, mask, precision),
        )

        # GRU: parts n inside r, r, z, n; the first three belong to W_hh, the last three to W_ih.
        inner = dgates[..., : GH // H, :].flatten(3)  # [T, B, N, G*H], gradient through W_hh
        outer = dgates[..., parts - GH // H :, :].flatten(3)
        flat = outer.reshape(T * B, N * GH)
        dw_ih = flat.t() @ x.reshape(T * B, D)
        dx = (flat @ w_ih).view(T, B, D)
        turned = w_hh.roll(H, 1) if cell == "gru" else w_hh
        dw_hh, dh_start = through_w_hh(inner, seen, h_start, turned, lengths)
    dpeephole = None
    if c_before is not None:
        by_inner = (
            dgates[..., :-2, :] * c_before.unsqueeze(3),
            dgates[..., -1:, :] * saved.unsqueeze(3),
        )
        dpeephole = torch.cat([sum_rows(part) for part in by_inner], 1)
    gradients = (
        dx,
        dw_ih,
        dw_hh.roll(-H, 1) if cell == "gru" else dw_hh,
        None if bias is None else sum_rows(outer).flatten(),
        None if bias_hn is None else sum_rows(dgates[..., 0, :]),
        None if first is None else torch.stack([outer[start] for start in starts(lengths, N)]),
        dpeephole,
        (dh_state + (dh_start if mask is None else mask * dh_start)).to(x.dtype),
        None if dc_state is None else dc_state.to(x.dtype, copy=True),
    )
    present: Any = tuple(x.new_empty(0) if g is None else g for g in gradients)
    return present  # type: ignore[no-any-return]


recurrence_backward = torch.library.custom_op(
    "kernels::recurrence_backward", compute_backward, mutates_args=()
)


@recurrence_backward.register_fake
def _(dy: Any, dh_n: Any, dc_n: Any, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, _, _, _, _, _ = others  # w_ih to c_0
    return tuple(
        x.new_empty(0) if tensor is None else x.new_empty(tensor.shape) for tensor in (x, *inputs)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, cell, _, precision = inputs
    y, _, _, gates, saved = output
    ctx.save_for_backward(*tensors, y, gates, saved)
    ctx.mark_non_differentiable(gates, saved)
    ctx.set_materialize_grads(False)  # zeros of the gates would be written, and not read
    ctx.options = cell, precision


def _backward(ctx: Any, *gradients_of: Tensor | None) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    watched = observed(*tensors, *gradients_of[:3]) or torch.is_grad_enabled()
    run: Any = recurrence_backward if watched else compute_backward
    with without_autocast(tensors[0].device.type):  # the caller's may not be the forward pass'
        gradients = run(*gradients_of[:3], *tensors, *ctx.options)
    kept = [None if t is None else g for t, g in zip(tensors, gradients, strict=False)]
    return (*kept, None, None, None, None, None)  # mask, lengths, cell, save, precision


def _no_double_backward(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "the triton backend has no double backward; use backend='reference' for gradients of "
        "gradients"
    )


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_no_double_backward)


class EagerRecurrence(torch.autograd.Function):
    """`recurrence` where nobody looks at operators: see `kernels.context.observed`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        """As `compute`."""
        output = compute(*inputs)
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)
