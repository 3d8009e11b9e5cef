"""`ctc_loss`: connectionist temporal classification on raw logits."""

from typing import Any

import torch
from torch import Tensor

from kernels.backends import available_backends, triton_is_interpreted
from kernels.checks import Lengths
from kernels.choice import choose_backend
from kernels.context import current_device, transformed
from kernels.ctc import loss_aten, loss_operator, reference
from kernels.ctc.checks import (
    Labels,
    check_options,
    check_scores,
    labels_of,
    only_targets,
    refuse_second_derivative,
)
from kernels.ctc.reducing import Reducing, Reduction
from kernels.ctc.steps import Steps, steps_of


def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Negative log-probability, in nats, of targets given logits, over all their alignments.

    `torch.nn.functional.ctc_loss` with the log-softmax inside. Definition: `reference.py`.
    Source: Graves et al. 2006.

    Numerics: float16 and bfloat16 are computed, and the loss returned, in float32; float64 stays
    (backends torch and reference). The gradient has the logits' dtype and is that of the
    softmax. It is deterministic on the CPU and in Triton. A logit of -inf is a symbol that is
    impossible. NaN, +inf or a frame of only -inf make loss and gradient of their utterance NaN,
    and of no other. Under torch.compile one operator works out loss and gradient, which 16 bits
    then round once more.

    Args:
        logits: [T, B, V], any strides: a batch-first tensor's transpose costs nothing. One
            utterance: [T, V].
        targets: [B, L] integers, past each end anything; or all labels in a row, [sum of
            lengths]. One utterance: [L]. Labels in a row with lengths on a GPU take the memory
            of targets as long as T, since the longest cannot be known without waiting.
        input_lengths: [B], valid frames, 0 to T; past them nothing changes anything, NaN
            included, and gradients are zero. Tensor (best on the device of `logits`) or integers.
        target_lengths: [B], labels, 0 to L, likewise.
        blank: symbol that stands for no label.
        reduction: "none": [B]; "sum"; "mean": each loss divided by its target length (1 if 0),
            then averaged.
        zero_infinity: a loss of inf becomes 0.
        backend: see `kernels.choose_backend`; under torch.func the reference takes the place of
            torch.

    Returns:
        The loss. It is inf, with a gradient of zero, where a target cannot be aligned: it needs
        one frame a label and one more between equal neighbours.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value. The triton backend does not
            look at values that are on a GPU, as the host would have to wait: there a wrong length
            or label makes the loss of its utterance NaN, with a gradient of zero.
        RuntimeError: a second derivative is asked for, which only the reference has.
    """
    op = "ctc_loss"
    check_scores(op, "logits", logits, (2, 3))
    check_options(op, reduction)
    if not torch.is_grad_enabled():  # or else a leaf's gradient is worked out for nobody
        logits = logits.detach()
    alone = logits.dim() == 2
    if alone:
        logits, targets = logits.unsqueeze(1), only_targets(op, targets)
    name = backend_for(backend, logits)
    said = targets, input_lengths, target_lengths, blank
    if torch.compiler.is_compiling() and name != "reference":
        reduced = loss_operator.loss(name, logits, *said, reduction, zero_infinity)
    else:
        V = logits.shape[2]
        labels = labels_of(op, logits, V, *said, asynchronous=name == "triton")
        way = Reducing.of(reduction, zero_infinity, labels.lengths)
        reduced = checked_loss(name, logits, labels, way)
    return reduced.reshape(()) if alone else reduced


def checked_loss(backend: str, logits: Tensor, labels: Labels, way: Reducing) -> Tensor:
    """`ctc_loss` on a backend's name, logits [T, B, V] and labels that are known to fit."""
    if backend == "reference":
        return way.reduce(reference.losses(logits, labels))
    if backend == "torch" and loss_aten.suits(logits):
        return loss_aten.loss(logits, labels, way)
    with current_device(logits.device):
        reduced: Tensor = _CtcLoss.apply(  # type: ignore[no-untyped-call]
            logits, labels, way, steps_of(backend)
        )
        return reduced


def backend_for(requested: str | None, scores: Tensor) -> str:
    """Name of the backend for logits of this dtype and device."""
    device = "cpu" if scores.is_cpu else scores.device.type  # .type takes as long as an operator
    interpreted = requested == "triton" and triton_is_interpreted()
    name = choose_backend(requested, device, available_backends(), scores.dtype, interpreted)
    return "reference" if name == "torch" and transformed() else name


class _CtcLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Labels, way: Reducing, steps: Steps) -> Tensor:
        T, _, V = logits.shape
        alphabet = steps.alphabet(labels, T, V)
        emissions = steps.emissions(logits, alphabet)
        losses, residual = steps.occupy(emissions, alphabet, ctx.needs_input_grad[0])
        if residual is not None:
            ctx.save_for_backward(logits, residual, losses)
            ctx.alphabet, ctx.way, ctx.steps = alphabet, way, steps
        return way.reduce(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivative("ctc_loss")
        logits, residual, losses = ctx.saved_tensors
        weights = ctx.way.weights(gradient, losses)
        return ctx.steps.gradient(logits, residual, ctx.alphabet, weights), None, None, None
