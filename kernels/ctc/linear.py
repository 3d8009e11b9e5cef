"""`linear_ctc_loss`: the output layer and the loss in one, without holding all logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import Lengths
from kernels.context import current_device
from kernels.ctc import loss_operator
from kernels.ctc.checks import (
    Labels,
    check_linear,
    check_options,
    labels_of,
    refuse_second_derivative,
)
from kernels.ctc.loss import backend_for, checked_loss
from kernels.ctc.reducing import Reducing, Reduction
from kernels.ctc.steps import Steps, steps_of
from kernels.precision import compute_dtype, without_autocast

#: Logits that exist at a time, a multiple of a frame's: 32 MiB in float32.
CHUNK = 2**23


def linear_ctc_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """`ctc_loss(F.linear(hidden, weight, bias), ...)` in far less memory.

    Logits exist for a few frames at a time and are computed again for the backward pass: one
    product of [T * B, H] by [H, V] more, instead of several tensors of [T, B, V]. Where all of
    them are few, up to `CHUNK`, it is `ctc_loss`; under torch.compile always.

    Numerics: logits are those of F.linear, under torch.autocast in its dtype; the rest as
    `ctc_loss`. Gradients of weight and bias are summed over the chunks in float32 at least.

    Args:
        hidden: [T, B, H], any strides. NaN past an end reaches the gradient of weight, as in
            F.linear.
        weight: [V, H].
        bias: [V] or None.
        targets: this and all that follow: see `ctc_loss`.

    Raises:
        ValueError: as `ctc_loss`, or weight or bias do not fit.
    """
    op = "linear_ctc_loss"
    check_linear(op, hidden, weight, bias)
    check_options(op, reduction)
    dtype = compute_dtype(hidden)
    name = backend_for(backend, hidden)
    said = targets, input_lengths, target_lengths, blank
    if not torch.is_grad_enabled():  # or else the weight's gradient is worked out for nobody
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    device = hidden.device
    if torch.compiler.is_compiling() and name != "reference":
        with without_autocast(device.type):
            logits = F.linear(hidden, weight, bias)
        return loss_operator.loss(name, logits, *said, reduction, zero_infinity)
    labels = labels_of(op, hidden, len(weight), *said, asynchronous=name == "triton")
    with without_autocast(device.type), current_device(device):
        way = Reducing.of(reduction, zero_infinity, labels.lengths)
        if name == "reference" or len(_chunks(hidden, weight)) == 1:
            return checked_loss(name, F.linear(hidden, weight, bias), labels, way)
        loss: Tensor = _LinearCtcLoss.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, labels, way, steps_of(name)
        )
        return loss


class _LinearCtcLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Labels,
        way: Reducing,
        steps: Steps,
    ) -> Tensor:
        alphabet = steps.alphabet(labels, len(hidden), len(weight))
        emissions = torch.cat(
            [
                steps.emissions(F.linear(chunk, weight, bias), alphabet, first)
                for first, chunk in _chunks(hidden, weight)
            ]
        )
        losses, residual = steps.occupy(emissions, alphabet, any(ctx.needs_input_grad))
        if residual is not None:
            ctx.save_for_backward(hidden, weight, bias, residual, losses)
            ctx.alphabet, ctx.way, ctx.steps = alphabet, way, steps
        return way.reduce(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("linear_ctc_loss")
        with without_autocast(gradient.device.type):  # the caller's may not be the forward pass'
            return _LinearCtcLoss._gradients(ctx, gradient)

    @staticmethod
    def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, residual, losses = ctx.saved_tensors
        weights = ctx.way.weights(gradient, losses)
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        sums = torch.promote_types(weight.dtype, torch.float32)
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        d_weight = torch.zeros_like(weight, dtype=sums) if for_weight else None
        d_bias = torch.zeros_like(bias, dtype=sums) if for_bias else None
        for first, chunk in _chunks(hidden, weight):
            frames = slice(first, first + len(chunk))
            d_logits = ctx.steps.gradient(
                F.linear(chunk, weight, bias), residual[frames], ctx.alphabet, weights, first
            ).flatten(0, 1)
            if d_hidden is not None:
                d_hidden[frames] = (d_logits @ weight).view_as(chunk)
            if d_weight is not None:
                d_weight += d_logits.T @ chunk.flatten(0, 1)
            if d_bias is not None:
                d_bias += d_logits.sum(0, dtype=sums)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *[None] * 3,
        )


def _chunks(hidden: Tensor, weight: Tensor) -> list[tuple[int, Tensor]]:
    """Some frames of `hidden` at a time, with the number of the first."""
    T, B, _ = hidden.shape
    size = max(1, CHUNK // (B * len(weight)))
    return [(first, hidden[first : first + size]) for first in range(0, T, size)]
