"""The arguments of the CTC losses: every rule about them, and the one form the backends get.

All of these raise ValueError: `ctc_loss: blank must be from 0 to V - 1 = 31, got 32`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.checks import Lengths, expect_integers, tensor_of
from kernels.context import moved
from kernels.precision import autocast_enabled

REDUCTIONS = ("none", "mean", "sum")


class Labels(NamedTuple):
    """What each utterance of a batch says; all tensors on the device of the logits.

    They may be the caller's own, who may write into them before the backward pass: that reads
    only what the forward pass has made of them.
    """

    targets: Tensor  # [B, L] int64; anything past an end
    lengths: Tensor  # [B] int64; above L only where that is above T, which cannot be aligned
    frames: Tensor  # [B] int64, valid frames
    blank: int
    limit: int  # a length above it is a mistake


def labels_of(
    op: str,
    scores: Tensor,  # [T, B, anything]: logits, or what they are made from
    V: int,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int,
    *,
    asynchronous: bool,  # values on the device are not looked at: the host would have to wait
) -> Labels:
    """Both layouts of targets and any kind of lengths as one `Labels`.

    Raises:
        ValueError: a wrong shape, dtype or value. Values that are on a GPU are not seen if
            `asynchronous`; the backend then makes the loss of that utterance NaN.
    """
    T, B, _ = scores.shape
    if V == 0 or 0 in scores.shape:
        raise ValueError(f"{op}: T, B and V must be at least 1, got {[T, B, V]}")
    if not 0 <= blank < V:
        raise ValueError(f"{op}: blank must be from 0 to V - 1 = {V - 1}, got {blank}")
    expect_integers(f"{op}: targets", targets)
    if targets.dim() not in (1, 2) or (targets.dim() == 2 and targets.shape[0] != B):
        raise ValueError(
            f"{op}: targets must be [B, L] with B = {B}, or 1-D (all of them in a row), "
            f"got {list(targets.shape)}"
        )
    limit = targets.shape[-1]
    looked_at = not asynchronous
    frames = _lengths(op, "input_lengths", input_lengths, B, T, "T", looked_at)
    lengths = _lengths(
        op, "target_lengths", target_lengths, B, limit, "the labels in targets", looked_at
    )
    device = scores.device
    if targets.dim() == 1:
        lengths_known = looked_at or lengths.is_cpu
        if lengths_known and (total := int(lengths.sum())) != limit:
            raise ValueError(
                f"{op}: 1-D targets must hold sum(target_lengths) = {total} labels, got {limit}"
            )
        # Without looking at lengths on a GPU, this is the most that can still be aligned.
        longest = int(lengths.max()) if lengths_known else min(limit, T)
        targets, lengths = moved(targets, device), moved(lengths, device)
        if not lengths_known:
            lengths = torch.where(lengths.sum() == limit, lengths, -1)
        targets = _padded(targets, lengths, longest)
    targets, lengths = moved(targets, device).long(), moved(lengths, device)
    if looked_at or targets.is_cpu:
        _expect_symbols(op, targets, lengths, V, blank)
    return Labels(targets, lengths, moved(frames, device), blank, limit)


def only_targets(op: str, targets: Tensor) -> Tensor:
    """Those of one utterance, [L] or [1, L], as [1, L]."""
    expect_integers(f"{op}: targets", targets)
    if targets.dim() != 1 and (targets.dim() != 2 or len(targets) != 1):
        raise ValueError(
            f"{op}: targets of one utterance must be [L] or [1, L], got {list(targets.shape)}"
        )
    return targets.reshape(1, -1)


def check_options(op: str, reduction: str) -> None:
    """A reduction of torch's."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {list(REDUCTIONS)}, got {reduction!r}")


def check_backend(op: str, backend: str | None) -> None:
    """One of alignment and search, which have no reference."""
    if backend not in (None, "torch", "triton"):
        raise ValueError(f"{op}: backend must be None, 'torch' or 'triton', got {backend!r}")


def check_scores(op: str, name: str, scores: Tensor, dims: Sequence[int]) -> None:
    """Floating point, and of one of these numbers of dimensions."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{op}: {name} must be a floating-point tensor, got {got}")
    if scores.dim() not in dims:
        wanted = " or ".join(f"{d}-D" for d in dims)
        raise ValueError(f"{op}: {name} must be {wanted}, got {list(scores.shape)}")


def check_linear(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """[V, H] and [V] beside hidden [T, B, H], on its device."""
    check_scores(op, "hidden", hidden, (3,))
    check_scores(op, "weight", weight, (2,))
    H = hidden.shape[-1]
    if weight.shape[1] != H:
        raise ValueError(f"{op}: weight must be [V, H] = [V, {H}], got {list(weight.shape)}")
    if bias is not None:
        check_scores(op, "bias", bias, (1,))
        if len(bias) != len(weight):
            raise ValueError(f"{op}: bias must be [V] = [{len(weight)}], got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(
                f"{op}: {name} must be on hidden's device {hidden.device}, got {tensor.device}"
            )
        autocast = autocast_enabled(hidden.device.type)
        if tensor is not None and tensor.dtype != hidden.dtype and not autocast:
            raise ValueError(
                f"{op}: {name} must have hidden's dtype {hidden.dtype}, got {tensor.dtype}; "
                "convert one of them, or use torch.autocast"
            )


def refuse_second_derivative(op: str) -> None:
    """For a backward pass, which under create_graph runs with gradients enabled."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}: expected a first derivative only, got create_graph=True; "
            "use backend='reference'"
        )


def _lengths(
    op: str, name: str, lengths: Lengths, B: int, most: int, symbol: str, looked_at: bool
) -> Tensor:
    """As [B] int64, up to `most` unless they are on a GPU and not to be looked at."""
    lengths = tensor_of(f"{op}: {name}", lengths)
    expect_integers(f"{op}: {name}", lengths)
    if lengths.dim() == 0 and B == 1:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (B,):
        raise ValueError(f"{op}: {name} must be [B] = [{B}], got {list(lengths.shape)}")
    if looked_at or lengths.is_cpu:
        values = lengths.tolist()
        if min(values) < 0 or max(values) > most:
            n = next(n for n, length in enumerate(values) if not 0 <= length <= most)
            raise ValueError(
                f"{op}: {name} must be from 0 to {most}, {symbol}, got {name}[{n}] = {values[n]}"
            )
    return lengths.long()


def _padded(targets: Tensor, lengths: Tensor, L: int) -> Tensor:
    """Labels in a row as [B, L], on the device of both."""
    B = len(lengths)
    if not targets.numel():
        return targets.new_empty(B, 0)
    first = lengths.cumsum(0) - lengths
    index = first.unsqueeze(1) + torch.arange(L, device=targets.device)  # [B, L]
    return targets[index.clamp(0, len(targets) - 1)]


def _expect_symbols(op: str, targets: Tensor, lengths: Tensor, V: int, blank: int) -> None:
    if targets.numel():  # mostly all are right, past the ends too: one operator instead of ten
        least, most = (value.item() for value in targets.aminmax())
        if least >= 0 and most < V and not least <= blank <= most:
            return
    inside = torch.arange(targets.shape[1], device=targets.device) < lengths.unsqueeze(1)
    wrong = inside & ((targets < 0) | (targets >= V) | (targets == blank))
    if wrong.any():
        b, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{op}: targets must be from 0 to V - 1 = {V - 1} and not blank = {blank}, "
            f"got {int(targets[b, place])} in utterance {b}"
        )
