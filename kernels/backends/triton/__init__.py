"""Hand-written Triton kernels: a persistent recurrence with its weights on chip; see README.md.

`layer` is the face to the rest; `ops` the torch operators, of kernels and of `products` around
them; `forward` and `backward` the kernels over `tiles` and `sync`; `plan` decides how they are
laid out, `launch` does it.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.backends import reference
from kernels.backends.triton.ops import EagerRecurrence, compute, recurrence
from kernels.cells import GATES, LSTMS, Cell, Options, States, Weights
from kernels.context import observed, transformed


def layer(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: list[Weights],
    lengths: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[Tensor, States]:
    """See `kernels.backends.Layer`.

    A projection (Sak 2014) is folded into the recurrence: with m = o * tanh(c) and h = W_hr m the
    step U h is (U W_hr) m, so the kernel runs over m, and h is one product after it. Only the
    initial h, which need not be a projection, enters as an addition to the first step.
    """
    if transformed():
        raise NotImplementedError(
            "the triton backend works neither under torch.func nor in forward mode; use "
            "backend='reference', or for torch.func.grad backend='torch'"
        )
    T, B, _ = x.shape
    if B == 0:  # nothing to launch
        return reference.layer(cell, x, states, weights, lengths, mask, options)
    N, H = len(weights), weights[0].hh.shape[0] // GATES[cell]
    if lengths is None:
        lengths = torch.full((B,), T, dtype=torch.int64, device=x.device)
    h_0, w_hh, first = states[0], torch.stack([w.hh for w in weights]), None
    projection = None
    if weights[0].hr is not None:
        projection = torch.stack([w.hr for w in weights if w.hr is not None])  # [N, P, H]
        first = h_0 @ w_hh.transpose(1, 2)
        w_hh = w_hh @ projection
        h_0 = x.new_zeros(N, B, H)
    bias, bias_hn = _biases(cell, weights)
    w_ih = torch.cat([w.ih for w in weights])
    peephole = None
    if weights[0].peephole is not None:
        rows = [w.peephole for w in weights if w.peephole is not None]
        peephole = torch.stack(rows).view(N, -1, H)
    c_0 = states[1] if cell in LSTMS else None
    arguments = (x, w_ih, w_hh, bias, bias_hn, first, peephole, h_0, c_0)
    save = "nothing"
    if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in arguments):
        save = "state" if options.recompute else "gates"
    if observed(*arguments):
        run: Any = recurrence
    else:
        run = compute if save == "nothing" else EagerRecurrence.apply
    y, h_n, c_n, _, _ = run(*arguments, mask, lengths, cell, save, options.precision)
    if projection is not None:
        y = torch.einsum("tbnh,nph->tbnp", y.view(T, B, N, H), projection).flatten(2)
        h_n = h_n @ projection.transpose(1, 2)
    return y, (h_n,) if c_0 is None else (h_n, c_n)


def _biases(cell: Cell, weights: list[Weights]) -> tuple[Tensor | None, Tensor | None]:
    """(what is added to W x [N*G*H], what the GRU adds inside its reset gate's product [N, H])."""
    if weights[0].bias_ih is None:
        return None, None
    ih = torch.stack([w.bias_ih for w in weights if w.bias_ih is not None])  # [N, G*H]
    hh = torch.stack([w.bias_hh for w in weights if w.bias_hh is not None])
    if cell != "gru":
        return (ih + hh).flatten(), None
    H = hh.shape[1] // 3
    outer = torch.nn.functional.pad(hh[:, : 2 * H], (0, H))
    return (ih + outer).flatten(), hh[:, 2 * H :]
