"""ATen's padded one-direction operators, made exact for unequal lengths; on CPUs also `packed`.

ATen's own way with lengths, the PackedSequence, is one small step after another. Here each
direction is a single padded call, the fast path of oneDNN and cuDNN. The reverse direction
runs forwards over utterances that are flipped within their lengths, so that its padding too
comes last, where it cannot reach a valid frame. See "Exact lengths" in kernels/README.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.backends import packed, reference
from kernels.cells import Cell, Options, States, Weights
from kernels.context import in_forward_mode, keeps_gradients, transformed


@dataclass(frozen=True)
class _Ends:
    """Where the utterances of a padded batch end."""

    last: Tensor  # [B] index of the last frame
    past: Tensor  # [T, B, 1] true past the end
    flip: Tensor  # [T*B] rows of x[T, B] flipped within the lengths, padding left in place

    @classmethod
    def of(cls, lengths: Tensor, T: int) -> "_Ends":
        B = len(lengths)
        frame = torch.arange(T, device=lengths.device).unsqueeze(-1)  # [T, 1]
        past = frame >= lengths
        source = torch.where(past, frame, lengths - 1 - frame)  # [T, B]
        rows = source * B + torch.arange(B, device=lengths.device)
        return cls(lengths - 1, past.unsqueeze(-1), rows.flatten())


def _flipped(x: Tensor, ends: _Ends | None) -> Tensor:
    if ends is None:
        return x.flip(0)
    return x.flatten(0, 1).index_select(0, ends.flip).view(x.shape)


def _holds(x: Tensor) -> int:
    """How many inputs hold the cell: one, and in 16 bits as many as make D a multiple of 8.

    Rows of an odd D cost oneDNN's bf16 LSTM two and a half times the time.
    """
    return 1 if x.element_size() > 2 else 8 - x.shape[-1] % 8


def _with_hold(x: Tensor, ends: _Ends) -> Tensor:
    """`x` [T, B, D] with more inputs that are 1 past the end."""
    past = ends.past.expand(-1, -1, _holds(x))
    return torch.cat([x, past.to(x.dtype)], -1)


def _holding(w: Weights, holds: int) -> Weights:
    """Weights whose last inputs hold the cell: i = 0, f = 1, o = 0, so c' = c and h' = 0.

    Half the largest number leaves any sum finite, and no other input can outweigh it.
    """
    H = w.ih.shape[0] // 4
    K = torch.finfo(w.ih.dtype).max / 2 / holds
    column = w.ih.new_tensor([-K, K, 0.0, -K]).repeat_interleave(H).unsqueeze(-1)
    return w._replace(ih=torch.cat([w.ih, column.expand(-1, holds)], -1))


def _direction(cell: Cell, x: Tensor, states: States, w: Weights) -> tuple[Tensor, States]:
    """One direction over all T frames of every row: outputs [T, B, P] and states after T."""
    train = keeps_gradients()  # cuDNN keeps nothing for a backward pass otherwise
    arguments = (w.present, w.bias_ih is not None, 1, 0.0, train, False, False)
    if cell == "lstm":
        y, h, c = torch._VF.lstm(x, states, *arguments)
        # Traced by torch.compile, these have one dimension too many (pytorch issue 151200).
        return y, (h.view_as(states[0]), c.view_as(states[1]))
    operator = getattr(torch._VF, cell)
    y, h = operator(x, states[0], *arguments)
    return y, (h,)


def _suits_packed(
    cell: Cell, x: Tensor, weights: list[Weights], lengths: Tensor | None, variant: bool
) -> bool:
    """Whether `packed` is the fastest here, or the only one that torch.compile can take.

    Not under torch.func, which a custom operator does not take.

    Of ATen's operators for CPUs only the LSTM in float32 and below is oneDNN's, whose steps are
    faster, with several threads above all. With lengths `packed` leaves the padding out, and wins
    with many utterances where gradients are enabled, or where a fifth is padding, on one thread.
    """
    if x.device.type != "cpu" or weights[0].hr is not None:
        return False
    if x.dtype not in (torch.float32, torch.float64) or transformed():
        return False
    if variant or cell != "lstm" or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return True
    (T, B, _) = x.shape
    if lengths is None or B < 16:
        return False
    if torch.is_grad_enabled():
        return True
    return torch.get_num_threads() == 1 and int(lengths.sum()) < 0.8 * T * B


def _suits_one_step(cell: Cell, x: Tensor, weights: list[Weights], variant: bool) -> bool:
    """Whether this is a single step of an LSTM in float32 on a CPU.

    At each call oneDNN rearranges the weights, which takes as long as a step of several rows: who
    asks frame by frame would wait twice.
    """
    plain = cell == "lstm" and not variant and weights[0].hr is None
    return x.shape[0] == 1 and plain and x.device.type == "cpu" and x.dtype == torch.float32


def _one_step(x: Tensor, states: States, weights: list[Weights]) -> tuple[Tensor, States]:
    """A single frame, so that every length is 1."""
    each = (
        torch._VF.lstm_cell(x[0], [state[n] for state in states], *w.present)
        for n, w in enumerate(weights)
    )
    h, c = (torch.stack(state) for state in zip(*each, strict=True))
    return torch.cat(tuple(h), -1).unsqueeze(0), (h, c)


def layer(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: list[Weights],
    lengths: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[Tensor, States]:
    """See `kernels.backends.Layer`. The variants that neither ATen nor `packed` has, in 16 bits,
    with projection or on a GPU, run as in the reference; in forward mode everything does.
    """
    if in_forward_mode():  # of which neither oneDNN nor cuDNN has any
        return reference.layer(cell, x, states, weights, lengths, mask, options)
    variant = cell == "cifg" or mask is not None or weights[0].peephole is not None
    if _suits_one_step(cell, x, weights, variant):
        return _one_step(x, states, weights)
    if _suits_packed(cell, x, weights, lengths, variant):
        return packed.layer(cell, x, states, weights, lengths, mask)
    if variant:
        return reference.layer(cell, x, states, weights, lengths, mask, options)
    ends = None if lengths is None else _Ends.of(lengths, x.shape[0])
    if ends is not None and cell == "lstm":
        weights = [_holding(w, _holds(x)) for w in weights]
        x = _with_hold(x, ends)
    outputs, finals = [], []
    for direction, w in enumerate(weights):
        initial = tuple(state[direction : direction + 1] for state in states)
        y, final = _direction(cell, _flipped(x, ends) if direction else x, initial, w)
        if ends is not None:
            rows = torch.arange(len(ends.last), device=x.device)
            final = (y[ends.last, rows].unsqueeze(0), *final[1:])
            y = y.masked_fill(ends.past, 0)
        outputs.append(_flipped(y, ends) if direction else y)
        finals.append(final)
    if len(weights) == 1:
        return outputs[0], finals[0]
    return torch.cat(outputs, -1), tuple(torch.cat(s) for s in zip(*finals, strict=True))
