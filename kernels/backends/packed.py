"""A recurrence for CPUs on packed rows: no frame past an end is ever computed.

Utterances stand in order of falling length, so that those which still run at a frame are the
first rows of the states, in both directions. What the states hold below these rows are final
ones or, where time runs backwards, initial ones: nothing has to be flipped, masked or gathered.
The products with W_ih and all gradients of weights are taken over all rows at once.

torch.compile sees two operators, `kernels::packed_recurrence` and its backward, and does not look
inside: torch 2.11 cannot compile nn.LSTM's own on a CPU (wrong shapes of its states, and no
backward pass; pytorch issues 151200 and 158007).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kernels.backends.packed_steps import BACKWARD, FORWARD, KEEP, LstmBackward
from kernels.cells import LSTMS, Cell, States, Weights

BLOCK = 128  # rows of a sum in float32


@dataclass(frozen=True)
class _Packing:
    """Where the frames inside the lengths go: frame after frame, the longest utterance first."""

    B: int
    sizes: list[int]  # rows of each frame
    order: Tensor  # [B] utterances by falling length
    rows: Tensor | None  # [R] of x.flatten(0, 1); None: all of them as they are

    @classmethod
    def of(cls, lengths: Tensor | None, T: int, B: int) -> "_Packing":
        if lengths is None:
            return cls(B, [B] * T, torch.arange(B), None)
        lengths, order = lengths.sort(descending=True, stable=True)
        frame = torch.arange(T).unsqueeze(-1)
        inside = frame < lengths  # [T, B]
        return cls(B, inside.sum(1).tolist(), order, (frame * B + order)[inside])

    def frames(self, direction: int, backwards: bool = False) -> range:
        """In the order of the steps."""
        frames = range(len(self.sizes))
        return frames if (direction == 0) != backwards else frames[::-1]

    def pack(self, x: Tensor) -> Tensor:
        """[T, B, F] -> [R, F]."""
        x = x.flatten(0, 1)
        return x if self.rows is None else x.index_select(0, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """[R, F] -> [T, B, F], zero past the ends."""
        T, F = len(self.sizes), packed.shape[1]
        if self.rows is not None:
            packed = packed.new_zeros(T * self.B, F).index_copy_(0, self.rows, packed)
        return packed.view(T, self.B, F)

    def ordered(self, state: Tensor) -> Tensor:
        """A copy of [N, B, H] by falling length."""
        return state.index_select(1, self.order)

    def restored(self, state: Tensor) -> Tensor:
        """The inverse of `ordered`."""
        return torch.empty_like(state).index_copy_(1, self.order, state)


def _by_direction(weights: Sequence[Tensor], N: int) -> list[Weights]:
    """From `Weights.present` of all directions."""
    each = len(weights) // N
    directions = []
    for n in range(N):
        own = list(weights[n * each : (n + 1) * each])
        peephole = own.pop() if each % 2 else None  # all others come in pairs
        directions.append(Weights(*own)._replace(peephole=peephole))
    return directions


def _bias(w: Weights, cell: str) -> Tensor:
    """What is added to W x [G*H]; the GRU adds d_n inside its reset gate's product."""
    if w.bias_ih is None or w.bias_hh is None:
        return w.hh.new_zeros(len(w.hh))
    if cell != "gru":
        return w.bias_ih + w.bias_hh
    H = w.hh.shape[1]
    return w.bias_ih + torch.cat([w.bias_hh[: 2 * H], w.hh.new_zeros(H)])


@torch.library.custom_op("kernels::packed_recurrence", mutates_args=())
def recurrence(
    x: Tensor,  # [T, B, D]
    weights: Sequence[Tensor],  # W_ih, W_hh and, if there are, b_ih, b_hh, p of each direction
    h_0: Tensor,  # [N, B, H]
    c_0: Tensor,  # [N, B, H], without c [N, B, 0]
    lengths: Tensor | None,  # [B], from 1 to T
    mask: Tensor | None,  # [N, B, H], of h where U sees it
    cell: str,
    save: bool,  # what the backward pass needs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y [T, B, N*H], h_n, c_n, gates [N, T*B, G, H], h and what the cell keeps [N, T*B, H]).

    The last three hold something in their first R rows, or are empty unless `save`.
    """
    (T, B, _), (N, _, H) = x.shape, h_0.shape
    packing = _Packing.of(lengths, T, B)
    sizes, rows = packing.sizes, packing.pack(x)
    R = len(rows)
    h_n, c_n = packing.ordered(h_0), packing.ordered(c_0)
    mask = None if mask is None else packing.ordered(mask)
    y = x.new_empty(R, N, H)
    spaces = _spaces(x, weights[0], h_0, cell, N if save else 1)
    for n, w in enumerate(_by_direction(weights, N)):
        gates, before, kept = (space[n if save else 0, :R] for space in spaces)
        torch.addmm(_bias(w, cell), rows, w.ih.t(), out=gates.flatten(1))
        steps = FORWARD[cast(Cell, cell)](gates, w, kept, sizes)
        outputs, befores = y[:, n].split(sizes), before.split(sizes)
        h, c = ([state[n, :b] for b in range(B + 1)] for state in (h_n, c_n))
        for t in packing.frames(n):
            b = sizes[t]
            befores[t].copy_(h[b])
            seen = h[b] if mask is None else h[b] * mask[n, :b]
            steps.step(t, seen, h[b], c[b])
            outputs[t].copy_(h[b])
    if not save:
        spaces = _spaces(x, weights[0], h_0, cell, 0)
    return packing.unpack(y.flatten(1)), packing.restored(h_n), packing.restored(c_n), *spaces


@recurrence.register_fake
def _(
    x: Tensor, weights: Sequence[Tensor], h_0: Tensor, c_0: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *_, cell, save = others
    (T, B, _), (N, _, H) = x.shape, h_0.shape
    spaces = _spaces(x, weights[0], h_0, cell, N if save else 0)
    return x.new_empty(T, B, N * H), torch.empty_like(h_0), torch.empty_like(c_0), *spaces


def _spaces(
    x: Tensor, w_ih: Tensor, h_0: Tensor, cell: str, N: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for gates, h before each step and what the cell keeps, of N directions.

    For all T*B rows, so that its shape does not depend on the lengths.
    """
    rows, H = x.shape[0] * x.shape[1], h_0.shape[2]
    return (
        x.new_empty(N, rows, len(w_ih) // H, H),
        x.new_empty(N, rows, H),
        x.new_empty(N, rows, H if cell in KEEP else 0),
    )


def _product(gates: Tensor, inputs: Tensor) -> Tensor:
    """[R, G*H] transposed by [R, F], summed by blocks: a chain of all R would round too often."""
    product = gates.new_zeros(gates.shape[1], inputs.shape[1])
    for some_gates, some_inputs in zip(gates.split(BLOCK), inputs.split(BLOCK), strict=True):
        product += some_gates.t() @ some_inputs
    return product


@torch.library.custom_op("kernels::packed_recurrence_backward", mutates_args=())
def recurrence_backward(
    dy: Tensor,  # [T, B, N*H]
    dh_n: Tensor,
    dc_n: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    mask: Tensor | None,
    gates: Tensor,
    before: Tensor,
    kept: Tensor,
    cell: str,
    with_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of x (empty unless `with_dx`), h_0, c_0 and the weights."""
    (T, B, _), (N, _, H) = x.shape, dh_n.shape
    packing = _Packing.of(lengths, T, B)
    sizes, rows = packing.sizes, packing.pack(x)
    R = len(rows)
    dys = packing.pack(dy).unflatten(1, (N, H))
    dh_0, dc_0 = packing.ordered(dh_n), packing.ordered(dc_n)
    mask = None if mask is None else packing.ordered(mask)
    dx = rows.new_empty(rows.shape if with_dx else (0, 0))
    gradients: list[Tensor] = []
    for n, w in enumerate(_by_direction(weights, N)):
        h = before[n, :R]
        steps = BACKWARD[cast(Cell, cell)](gates[n, :R], w, h, kept[n, :R], sizes)
        outputs, inner = dys[:, n].split(sizes), steps.inner.split(sizes)
        seen = h if mask is None else h * torch.cat([mask[n, :b] for b in sizes])
        for t in packing.frames(n, backwards=True):
            dh = dh_0[n, : sizes[t]].add_(outputs[t])
            steps.step(t, dh, dc_0[n, : sizes[t]])
            if mask is None:
                dh.addmm_(inner[t], w.hh)
            else:
                dh.addcmul_(inner[t] @ w.hh, mask[n, : sizes[t]])
        outer = steps.outer
        gradients += [_product(outer, rows), _product(steps.inner, seen)]
        if w.bias_ih is not None:
            gradients += [outer.sum(0), steps.inner.sum(0)]
        if isinstance(steps, LstmBackward) and w.peephole is not None:
            gradients.append(steps.peepholes())
        if with_dx:
            dx.addmm_(outer, w.ih, beta=min(n, 1))
    dx = packing.unpack(dx) if with_dx else dx
    return dx, packing.restored(dh_0), packing.restored(dc_0), gradients


@recurrence_backward.register_fake
def _(
    dy: Tensor, dh_n: Tensor, dc_n: Tensor, x: Tensor, weights: Sequence[Tensor], *others: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dx = x.new_empty(x.shape if others[-1] else (0, 0))
    states = torch.empty_like(dh_n), torch.empty_like(dc_n)
    return dx, *states, [torch.empty_like(w) for w in weights]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, _, _, lengths, mask, ctx.cell, _ = inputs
    ctx.save_for_backward(x, lengths, mask, *output[3:], *weights)
    ctx.mark_non_differentiable(*output[3:])


def _backward(ctx: Any, dy: Tensor, dh_n: Tensor, dc_n: Tensor, *_: Any) -> tuple[Any, ...]:
    x, lengths, mask, gates, before, kept, *weights = ctx.saved_tensors
    with_dx = ctx.needs_input_grad[0]
    dx, dh_0, dc_0, gradients = recurrence_backward(
        dy, dh_n, dc_n, x, weights, lengths, mask, gates, before, kept, ctx.cell, with_dx
    )
    return dx if with_dx else None, gradients, dh_0, dc_0, None, None, None, None


def _no_double_backward(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "the torch backend has no double backward on a CPU; use backend='reference' for "
        "gradients of gradients"
    )


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_no_double_backward)


def layer(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: list[Weights],
    lengths: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, States]:
    """As `kernels.backends.Layer`, without projection."""
    flat = [tensor for w in weights for tensor in w.present]
    h_0 = states[0]
    c_0 = states[1] if cell in LSTMS else h_0.new_empty(*h_0.shape[:2], 0)
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *flat, *states))
    y, h_n, c_n, *_ = recurrence(x, flat, h_0, c_0, lengths, mask, cell, needs)
    return y, (h_n, c_n)[: len(states)]
