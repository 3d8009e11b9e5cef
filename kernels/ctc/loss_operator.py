"""The loss as an operator of torch.library, for torch.compile, which does not look inside.

It could not follow: lengths become numbers of Python, on a CPU, and the sizes of what the steps
exchange depend on the targets. The gradients for the logits are worked out along with the losses
and take the logits' place until the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.checks import Lengths, tensor_of
from kernels.context import current_device, moved
from kernels.ctc.checks import labels_of, refuse_second_derivative
from kernels.ctc.reducing import Reducing, Reduction
from kernels.ctc.steps import steps_of

_SUM = Reducing("sum", False, None)


def loss(
    backend: str,
    logits: Tensor,  # [T, B, V]
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int,
    reduction: Reduction,
    zero_infinity: bool,
) -> Tensor:
    """As `kernels.ctc_loss`."""
    frames = tensor_of("ctc_loss: input_lengths", input_lengths)
    lengths = tensor_of("ctc_loss: target_lengths", target_lengths)
    needs = torch.is_grad_enabled() and logits.requires_grad
    losses, _ = losses_and_slopes(logits, targets, frames, lengths, blank, backend, needs)
    lengths = moved(lengths.reshape(-1), logits.device).long()
    return Reducing.of(reduction, zero_infinity, lengths).reduce(losses)


@torch.library.custom_op("kernels::ctc_losses", mutates_args=())
def losses_and_slopes(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    lengths: Tensor,
    blank: int,
    backend: str,
    with_slopes: bool,
) -> tuple[Tensor, Tensor]:
    """Losses [B], and the gradient of their sum for the logits or, if not wanted, [0, B, V]."""
    op, (T, B, V) = "ctc_loss", logits.shape
    asynchronous = backend == "triton"
    labels = labels_of(op, logits, V, targets, frames, lengths, blank, asynchronous=asynchronous)
    with current_device(logits.device):
        steps = steps_of(backend)
        alphabet = steps.alphabet(labels, T, V)
        losses, residual = steps.occupy(steps.emissions(logits, alphabet), alphabet, with_slopes)
        if residual is None:
            return losses, logits.new_empty(0, B, V)
        weights = _SUM.weights(torch.ones_like(losses), losses)
        slopes = steps.gradient(logits, residual, alphabet, weights)
    return losses, slopes.contiguous()


@losses_and_slopes.register_fake
def _(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    T, B, V = logits.shape
    losses = logits.new_empty(B, dtype=torch.promote_types(logits.dtype, torch.float32))
    return losses, logits.new_empty(T if others[-1] else 0, B, V)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("ctc_loss")
    if gradient is None:
        return (None,) * 7
    (slopes,) = ctx.saved_tensors
    # Past an end and where a loss is inf slopes are 0, and stay so whatever the gradient is.
    weighted = (slopes * gradient.unsqueeze(-1)).masked_fill(slopes == 0, 0.0)
    return weighted.to(slopes.dtype), *[None] * 6


losses_and_slopes.register_autograd(_backward, setup_context=_keep)
