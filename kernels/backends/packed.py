"""A recurrence for CPUs on packed rows: no frame past an end is ever computed.

Utterances stand in order of falling length, and each direction begins with its own first step:
forwards in time that is an utterance's first frame, backwards its last. So those which still run
at a step are the first rows of the states, in both directions, which can therefore take each step
together: what one thread does for one direction, another does for the other. Nothing has to be
masked or gathered between steps. The products with W_ih and all gradients of weights are taken
over all rows at once.

torch.compile sees two operators, `kernels::packed_recurrence` and its backward, and does not look
inside: torch 2.11 cannot compile nn.LSTM's own on a CPU (wrong shapes of its states, and no
backward pass; pytorch issues 151200 and 158007).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kernels.backends.packed_steps import BACKWARD, FORWARD, KEEP, LstmBackward, Recurrent, before
from kernels.cells import LSTMS, Cell, States, Weights
from kernels.context import keeps_gradients, observed
from kernels.precision import without_autocast

BLOCK = 128  # rows of a sum in float32


@dataclass(frozen=True)
class _Packing:
    """Where the frames inside the lengths go: step after step, the longest utterance first."""

    B: int
    sizes: list[int]  # rows of each step
    order: Tensor  # [B] utterances by falling length
    last: Tensor  # [B] row of each one's last step
    turn: Tensor  # [R] row of the same frame in the other direction; its own inverse
    frames: tuple[Tensor | None, Tensor]  # [R] of x.flatten(0, 1) by direction; None: 0, 1, 2 ...

    @classmethod
    def of(cls, lengths: Tensor | None, T: int, B: int) -> "_Packing":
        even = lengths is None
        lengths = torch.full((B,), T) if lengths is None else lengths
        lengths, order = lengths.sort(descending=True, stable=True)
        step = torch.arange(T).unsqueeze(-1)
        inside = step < lengths  # [T, B]
        sizes = inside.sum(1)
        first = sizes.cumsum(0) - sizes  # row of each step
        position = torch.arange(B)
        frames = (step * B + order)[inside]
        turn = (first[(lengths - 1 - step).clamp(min=0)] + position)[inside]
        return cls(
            B=B,
            sizes=sizes.tolist(),
            order=order,
            last=first[lengths - 1] + position,
            turn=turn,
            frames=(None if even else frames, frames[turn]),
        )

    def pack(self, x: Tensor, direction: int) -> Tensor:
        """[T, B, F] -> [R, F]."""
        x, frames = x.flatten(0, 1), self.frames[direction]
        return x if frames is None else x.index_select(0, frames)

    def unpack(self, packed: Tensor) -> Tensor:
        """[N, R, F] -> [T, B, N*F], zero past the ends."""
        N, _, F = packed.shape
        x = packed.new_zeros(len(self.sizes), self.B, N * F)
        rows = x.view(-1, N, F)
        for n, frames in enumerate(self.frames[:N]):
            if frames is None:
                rows[:, n] = packed[n]
            else:
                rows[:, n].index_copy_(0, frames, packed[n])
        return x  # no view, which the caller could not write into

    def apart(self, x: Tensor, N: int) -> Tensor:
        """The inverse of `unpack`."""
        return torch.stack([self.pack(part, n) for n, part in enumerate(x.chunk(N, 2))])

    def forwards(self, rows: Tensor, direction: int) -> Tensor:
        """Rows [R, F] of `direction` in the order of the first."""
        return rows.index_select(0, self.turn) if direction else rows

    def ordered(self, state: Tensor) -> Tensor:
        """A copy of [N, B, H] by falling length."""
        return state.index_select(1, self.order)

    def restored(self, state: Tensor) -> Tensor:
        """The inverse of `ordered`."""
        return torch.empty_like(state).index_copy_(1, self.order, state)

    def final(self, rows: Tensor) -> Tensor:
        """[N, R, H] -> [N, B, H], of each utterance's last step."""
        return self.restored(rows.index_select(1, self.last))


def _by_direction(weights: Sequence[Tensor], N: int) -> list[Weights]:
    """From `Weights.present` of all directions."""
    each = len(weights) // N
    directions = []
    for n in range(N):
        own = list(weights[n * each : (n + 1) * each])
        peephole = own.pop() if each % 2 else None  # all others come in pairs
        directions.append(Weights(*own)._replace(peephole=peephole))
    return directions


def _at_once(N: int) -> list[slice]:
    """Directions whose steps are taken together, by several threads.

    A single thread rather takes one after the other, and keeps one W_hh at a time in its cache.
    """
    together = N if torch.get_num_threads() > 1 else 1
    return [slice(n, n + together) for n in range(0, N, together)]


def _alone(x: Tensor) -> Tensor:
    """Of a single direction without the first dimension."""
    return x.squeeze(0)


def _bias(w: Weights, cell: str) -> Tensor:
    """What is added to W x [G*H]; the GRU adds d_n inside its reset gate's product."""
    if w.bias_ih is None or w.bias_hh is None:
        return w.hh.new_zeros(len(w.hh))
    if cell != "gru":
        return w.bias_ih + w.bias_hh
    H = w.hh.shape[1]
    return w.bias_ih + torch.cat([w.bias_hh[: 2 * H], w.hh.new_zeros(H)])


def compute(
    x: Tensor,  # [T, B, D]
    weights: Sequence[Tensor],  # W_ih, W_hh and, if there are, b_ih, b_hh, p of each direction
    h_0: Tensor,  # [N, B, H]
    c_0: Tensor,  # [N, B, H], without c [N, B, 0]
    lengths: Tensor | None,  # [B], from 1 to T
    mask: Tensor | None,  # [N, B, H], of h where U sees it
    cell: str,
    save: bool,  # what the backward pass needs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y [T, B, N*H], h_n, c_n, gates [N, T*B, G, H], what the cell keeps [N, T*B, H], h [same]).

    The last three hold something in their first R rows, or are empty unless `save`. The last one,
    h after each step, is y in another order: y is the caller's, who may write into it.
    """
    (T, B, _), (N, _, H) = x.shape, h_0.shape
    packing = _Packing.of(lengths, T, B)
    sizes, R = packing.sizes, sum(packing.sizes)
    h_0, c_0 = packing.ordered(h_0), packing.ordered(c_0)
    mask = None if mask is None else packing.ordered(mask)
    groups = _at_once(N)
    # Without a way back, the second direction overwrites what the first has left.
    spaces = _spaces(x, weights[0], h_0, cell, N if save else N // len(groups))
    after, c_n = x.new_empty(N, T * B, H), torch.empty_like(c_0)
    y = after[:, :R]
    directions = _by_direction(weights, N)
    for some in groups:
        gates, kept = (space[some if save else slice(None), :R] for space in spaces)
        for n, w in enumerate(directions[some], some.start):
            rows, out = packing.pack(x, n), gates[n - some.start].flatten(1)
            torch.addmm(_bias(w, cell), rows, w.ih.t(), out=out)
        steps = FORWARD[cast(Cell, cell)](
            _alone(gates), _alone(c_0[some]), _alone(kept), Recurrent.of(directions[some]), sizes
        )
        own = _alone(y[some])
        outputs, befores = own.split(sizes, -2), before(_alone(h_0[some]), own, sizes)
        masks = None if mask is None else _alone(mask[some])
        for t, (h, out) in enumerate(zip(befores, outputs, strict=True)):
            steps.step(t, h if masks is None else h * masks[..., : sizes[t], :], h, out)
        if cell in LSTMS:
            c_n[some] = packing.final(kept)
    if not save:
        spaces = _spaces(x, weights[0], h_0, cell, 0)
    results = packing.unpack(y), packing.final(y), c_n
    return *results, *spaces, after if save else x.new_empty(0, T * B, H)


recurrence = torch.library.custom_op("kernels::packed_recurrence", compute, mutates_args=())


@recurrence.register_fake
def _(
    x: Tensor, weights: Sequence[Tensor], h_0: Tensor, c_0: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    *_, cell, save = others
    (T, B, _), (N, _, H) = x.shape, h_0.shape
    spaces = _spaces(x, weights[0], h_0, cell, N if save else 0)
    results = x.new_empty(T, B, N * H), h_0.new_empty(h_0.shape), c_0.new_empty(c_0.shape)
    return *results, *spaces, x.new_empty(N if save else 0, T * B, H)


def _spaces(x: Tensor, w_ih: Tensor, h_0: Tensor, cell: str, N: int) -> tuple[Tensor, Tensor]:
    """Room for gates and what the cell keeps, of N directions.

    For all T*B rows, so that its shape does not depend on the lengths.
    """
    rows, H = x.shape[0] * x.shape[1], h_0.shape[2]
    return (
        x.new_empty(N, rows, len(w_ih) // H, H),
        x.new_empty(N, rows, H if cell in KEEP else 0),
    )


def _product(gates: Tensor, inputs: Tensor) -> Tensor:
    """[R, G*H] transposed by [R, F], summed by blocks: a chain of all R would round too often."""
    product = gates.new_zeros(gates.shape[1], inputs.shape[1])
    for some_gates, some_inputs in zip(gates.split(BLOCK), inputs.split(BLOCK), strict=True):
        product += some_gates.t() @ some_inputs
    return product


def compute_backward(
    dy: Tensor | None,  # [T, B, N*H]; None: zero, as of the next two
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    gates: Tensor,
    kept: Tensor,
    after: Tensor,
    cell: str,
    with_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of x (empty unless `with_dx`), h_0, c_0 and the weights."""
    (T, B, D), (N, _, H) = x.shape, h_0.shape
    packing = _Packing.of(lengths, T, B)
    sizes, R = packing.sizes, sum(packing.sizes)
    h_0, c_0 = packing.ordered(h_0), packing.ordered(c_0)
    dys = x.new_zeros(N, R, H) if dy is None else packing.apart(dy, N)
    dh_0 = torch.zeros_like(h_0) if dh_n is None else packing.ordered(dh_n)
    dc_0 = torch.zeros_like(c_0) if dc_n is None else packing.ordered(dc_n)
    h = torch.cat(before(h_0, after[:, :R], sizes), 1)
    mask = None if mask is None else packing.ordered(mask)
    seen = h if mask is None else h * torch.cat([mask[:, :b] for b in sizes], 1)
    dx = x.new_zeros(R, D) if with_dx else x.new_empty(0, 0)
    gradients: list[Tensor] = []
    directions = _by_direction(weights, N)
    for some in _at_once(N):
        stacked = Recurrent.of(directions[some])
        steps = BACKWARD[cast(Cell, cell)](
            _alone(gates[some, :R]),
            _alone(h[some]),
            _alone(c_0[some]),
            _alone(kept[some, :R]),
            stacked,
            sizes,
        )
        outputs, rows = _alone(dys[some]).split(sizes, -2), steps.inner.split(sizes, -2)
        all_dh, all_dc = _alone(dh_0[some]), _alone(dc_0[some])
        masks = None if mask is None else _alone(mask[some])
        for t in reversed(range(T)):
            b = sizes[t]
            dh = all_dh[..., :b, :].add_(outputs[t])
            steps.step(t, dh, all_dc[..., :b, :])
            through = rows[t] @ stacked.hh
            dh.add_(through if masks is None else through.mul_(masks[..., :b, :]))
        outers, inners = (
            part.reshape(some.stop - some.start, *part.shape[-2:])
            for part in (steps.outer, steps.inner)
        )
        for n, outer, inner in zip(range(N)[some], outers, inners, strict=True):
            gradients += [_product(outer, packing.pack(x, n)), _product(inner, seen[n])]
            if directions[n].bias_ih is not None:
                gradients += [outer.sum(0), inner.sum(0)]
            if isinstance(steps, LstmBackward) and directions[n].peephole is not None:
                gradients.append(steps.peepholes().reshape(len(outers), -1)[n - some.start])
            if with_dx:
                dx += packing.forwards(outer @ directions[n].ih, n)
    dx = packing.unpack(dx.unsqueeze(0)) if with_dx else dx
    return dx, packing.restored(dh_0), packing.restored(dc_0), gradients


recurrence_backward = torch.library.custom_op(
    "kernels::packed_recurrence_backward", compute_backward, mutates_args=()
)


@recurrence_backward.register_fake
def _(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor,
    c_0: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dx = x.new_empty(x.shape if others[-1] else (0, 0))
    # Whatever the strides of what they belong to, gradients are contiguous.
    dh_0, dc_0, *dweights = (t.new_empty(t.shape) for t in (h_0, c_0, *weights))
    return dx, dh_0, dc_0, dweights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, h_0, c_0, lengths, mask, ctx.cell, _ = inputs
    spaces = output[3:]
    ctx.save_for_backward(x, h_0, c_0, lengths, mask, *spaces, *weights)
    ctx.mark_non_differentiable(*spaces)
    ctx.set_materialize_grads(False)  # zeros of all spaces would be written, and not read


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    x, h_0, c_0, lengths, mask, gates, kept, after, *weights = ctx.saved_tensors
    with_dx = ctx.needs_input_grad[0]
    watched = observed(x, *weights, h_0, c_0, *gradients[:3]) or torch.is_grad_enabled()
    run: Any = recurrence_backward if watched else compute_backward
    tensors = x, weights, h_0, c_0, lengths, mask, gates, kept, after
    with without_autocast(x.device.type):  # the caller's may not be the forward pass'
        dx, dh_0, dc_0, dweights = run(*gradients[:3], *tensors, ctx.cell, with_dx)
    return dx if with_dx else None, dweights, dh_0, dc_0, None, None, None, None


def _no_double_backward(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "on a CPU the torch backend has no double backward of packed rows; use "
        "backend='reference' for gradients of gradients"
    )


recurrence.register_autograd(_backward, setup_context=_keep)
recurrence_backward.register_autograd(_no_double_backward)


class _Recurrence(torch.autograd.Function):
    """`recurrence` where nobody looks at operators: see `kernels.context.observed`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        cell: str,
        save: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = x, weights, h_0, c_0, lengths, mask, cell, save
        output = compute(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        dx, dweights, dh_0, dc_0, *others = _backward(ctx, *gradients)
        return dx, dh_0, dc_0, *others, *dweights


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
    needs = keeps_gradients() and any(t.requires_grad for t in (x, *flat, *states))
    if observed(x, *flat, *states):
        y, h_n, c_n, *_ = recurrence(x, flat, h_0, c_0, lengths, mask, cell, needs)
    elif not needs:
        y, h_n, c_n, *_ = compute(x, flat, h_0, c_0, lengths, mask, cell, needs)
    else:
        run: Any = _Recurrence.apply
        y, h_n, c_n, *_ = run(x, h_0, c_0, lengths, mask, cell, needs, *flat)
    return y, (h_n, c_n)[: len(states)]
