"""`lstm`, `gru` and `rnn`: recurrent layers as functions of their weights."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from kernels import checks
from kernels.cells import Cell, Options, Precision, States, op_name
from kernels.checks import Lengths
from kernels.stack import Stack

#: The input, and with it the output: a padded tensor or a PackedSequence.
Sequences = TypeVar("Sequences", Tensor, PackedSequence)


def lstm(
    x: Sequences,
    weights: Sequence[Sequence[Tensor]],
    hx: tuple[Tensor, Tensor] | None = None,
    lengths: Lengths | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    backend: str | None = None,
    recompute: bool = False,
    precision: Precision | None = None,
    recurrent_dropout: float = 0.0,
    cifg: bool = False,
    peepholes: Sequence[Tensor] | None = None,
) -> tuple[Sequences, tuple[Tensor, Tensor]]:
    """Long short-term memory layers, one or both directions.

    Equations: `lstm_step` and `cifg_step` in `kernels.backends.reference`. Without the last three
    arguments the same results as `torch.nn.LSTM`, with `lengths` as with the PackedSequence of
    these lengths.

    Args:
        x: [T, B, D], with `batch_first` [B, T, D], one utterance [T, D], or a PackedSequence.
        weights: `torch.nn.LSTM.all_weights`: for each layer and direction W_ih [4H, D],
            W_hh [4H, P], then b_ih, b_hh [4H] if there is bias, W_hr [P, H] if there is
            projection (P = H without).
        hx: initial h [layers * directions, B, P] and c [layers * directions, B, H]; None: zero.
        lengths: [B] integers, valid frames of each utterance of a padded `x`, from 1 to T: a tensor
            on any device, or a sequence; None: all T. On a GPU they are not checked, which would
            wait for it: an utterance with a wrong one comes out as NaN. What `x` holds past an
            end, NaN included, changes nothing and gets a zero gradient.
        dropout: probability, between layers, if `training`.
        backend: see `kernels.choose_backend`.
        recompute: the triton backend keeps c and h for the backward pass but not the gates, four
            times as large, and computes them again there with one matrix product.
        precision: of float32 products in the triton backend, "ieee" or "tf32", but for those with
            W_hr; None: as torch's own, `torch.backends.cuda.matmul.fp32_precision`.
        recurrent_dropout: probability, if `training`, that W_hh sees no h of a unit, in all steps
            of an utterance (Gal & Ghahramani 2016); each layer draws its own. Not with projection.
        cifg: input and forget gate are coupled, f = 1 - i (Greff et al. 2017); rows of i g o.
        peepholes: for each layer and direction, what c adds to the arguments of the gates i f o
            [3H], with `cifg` i o [2H] (Gers & Schmidhuber 2000).

    Returns:
        Outputs [T, B, directions * P] laid out as `x`, zero past each end, and the final
        (h, c) at each end, shaped as `hx`.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
    """
    stack = _stack(
        "cifg" if cifg else "lstm",
        weights,
        bidirectional,
        (dropout, recurrent_dropout),
        training,
        backend,
        Options(recompute, precision),
        peepholes,
    )
    y, (h, c) = _run(stack, x, hx, lengths, batch_first)
    return y, (h, c)


def gru(
    x: Sequences,
    weights: Sequence[Sequence[Tensor]],
    hx: Tensor | None = None,
    lengths: Lengths | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    backend: str | None = None,
    recompute: bool = False,
    precision: Precision | None = None,
    recurrent_dropout: float = 0.0,
) -> tuple[Sequences, Tensor]:
    """Gated recurrent units; as `lstm` with 3H rows of gates, `hx` and the final state only h.

    Equations: `kernels.backends.reference.gru_step`. Same results as `torch.nn.GRU`.
    """
    stack = _stack(
        "gru",
        weights,
        bidirectional,
        (dropout, recurrent_dropout),
        training,
        backend,
        Options(recompute, precision),
    )
    y, (h,) = _run(stack, x, None if hx is None else (hx,), lengths, batch_first)
    return y, h


def rnn(
    x: Sequences,
    weights: Sequence[Sequence[Tensor]],
    hx: Tensor | None = None,
    lengths: Lengths | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    backend: str | None = None,
    recompute: bool = False,
    precision: Precision | None = None,
    recurrent_dropout: float = 0.0,
) -> tuple[Sequences, Tensor]:
    """Elman layers; as `gru` with H rows instead of gates.

    Equations: `kernels.backends.reference.rnn_tanh_step`. Same results as `torch.nn.RNN`.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"rnn: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    cell: Cell = "rnn_tanh" if nonlinearity == "tanh" else "rnn_relu"
    stack = _stack(
        cell,
        weights,
        bidirectional,
        (dropout, recurrent_dropout),
        training,
        backend,
        Options(recompute, precision),
    )
    y, (h,) = _run(stack, x, None if hx is None else (hx,), lengths, batch_first)
    return y, h


def _stack(
    cell: Cell,
    weights: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropouts: tuple[float, float],  # between layers, recurrent
    training: bool,
    backend: str | None,
    options: Options,
    peepholes: Sequence[Tensor] | None = None,
) -> Stack:
    op = op_name(cell)
    checks.check_dropout(op, "dropout", dropouts[0])
    checks.check_dropout(op, "recurrent_dropout", dropouts[1])
    checks.check_precision(op, options.precision)
    split = checks.split_weights(op, cell, weights, peepholes)
    if dropouts[1] and split and split[0].hr is not None:
        raise ValueError(f"{op}: recurrent_dropout must be 0 with projection, got {dropouts[1]}")
    dropout, recurrent_dropout = dropouts if training else (0.0, 0.0)
    directions = 2 if bidirectional else 1
    return Stack(cell, split, directions, dropout, recurrent_dropout, backend, options)


def _run(
    stack: Stack, x: Sequences, hx: States | None, lengths: Lengths | None, batch_first: bool
) -> tuple[Sequences, States]:
    """Check, bring any kind of input to [T, B, D], run the layers, and bring the result back."""
    if isinstance(x, PackedSequence):
        if lengths is not None:
            raise ValueError(f"{stack.op}: lengths must be None: a PackedSequence has its own")
        return _run_packed(stack, x, hx)
    checks.check_input(stack.op, x)
    if x.dim() == 2:
        if lengths is not None:
            raise ValueError(f"{stack.op}: lengths must be None for one utterance [T, D]")
        return _run_alone(stack, x, hx)
    if not batch_first:
        return _run_batch(stack, x, hx, lengths)
    y, finals = _run_batch(stack, x.transpose(0, 1), hx, lengths)
    return y.transpose(0, 1), finals


def _run_batch(
    stack: Stack, x: Tensor, hx: States | None, lengths: Lengths | None
) -> tuple[Tensor, States]:
    T, B, _ = x.shape
    checks.check_frames(stack.op, T)
    _check_fit(stack, x, hx, B)
    if lengths is not None:
        lengths = checks.lengths_of(stack.op, lengths, T, B)
    return stack.run(x, hx, lengths)


def _run_alone(stack: Stack, x: Tensor, hx: States | None) -> tuple[Tensor, States]:
    checks.check_frames(stack.op, x.shape[0])
    _check_fit(stack, x, hx)
    if hx is not None:
        hx = tuple(state.unsqueeze(1) for state in hx)
    y, finals = stack.run(x.unsqueeze(1), hx, None)
    return y.squeeze(1), tuple(state.squeeze(1) for state in finals)


def _run_packed(
    stack: Stack, x: PackedSequence, hx: States | None
) -> tuple[PackedSequence, States]:
    checks.check_input(stack.op, x.data, dims=(2,))
    _check_fit(stack, x.data, hx, int(x.batch_sizes[0]))
    # Without its indices a PackedSequence pads to the order it is stored in, longest first.
    padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))
    if hx is not None:
        hx = _ordered(hx, x.sorted_indices)
    y, finals = stack.run(padded, hx, lengths)
    data = pack_padded_sequence(y, lengths).data
    packed = PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    return packed, _ordered(finals, x.unsorted_indices)


def _check_fit(stack: Stack, x: Tensor, hx: States | None, *batch: int) -> None:
    checks.check_weights(stack.op, stack.cell, x, stack.weights, stack.directions)
    if hx is not None:
        checks.check_states(stack.op, x, hx, stack.state_shapes(*batch))


def _ordered(states: States, order: Tensor | None) -> States:
    if order is None:
        return states
    return tuple(state.index_select(1, order) for state in states)
