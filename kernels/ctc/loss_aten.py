"""The loss by ATen's operators on all V symbols: on a CPU the fastest where V is small.

The recursion costs nothing for symbols that no label names, but its gradient does, and is not
right everywhere: `suits` has the rules. The operator's gradient for log-probabilities is already
the one for logits, so that log_softmax needs no backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.ctc.checks import Labels, refuse_second_derivative
from kernels.ctc.reducing import Reducing

SMALL = 256  # V up to which finding the needed symbols costs more than it saves
Says = tuple[Tensor, list[int], list[int]]  # targets [B, L]; frames; labels of each utterance


def suits(logits: Tensor) -> bool:
    """Whether `loss` is right and the fastest.

    ATen's gradient is NaN at symbols of probability zero, and wherever the padding is not finite.
    """
    if not logits.requires_grad:
        return True
    if logits.shape[2] > SMALL:
        return False
    least, most = (value.item() for value in logits.detach().aminmax())
    return bool(most - least < torch.finfo(logits.dtype).max)  # no log-probability is -inf


def loss(logits: Tensor, labels: Labels, way: Reducing) -> Tensor:
    """Of logits [T, B, V], reduced; with a gradient of zero for an utterance whose loss is inf."""
    lengths = labels.frames.tolist(), labels.lengths.tolist()
    if not logits.requires_grad:
        losses, _ = recursion(_log_probs(logits), (labels.targets, *lengths), labels.blank)
        return way.reduce(losses)
    own = (labels.targets.clone(), *lengths)
    reduced: Tensor = _Loss.apply(logits, own, labels.blank, way)  # type: ignore[no-untyped-call]
    return reduced


def recursion(log_probs: Tensor, says: Says, blank: int) -> tuple[Tensor, Tensor]:
    """Losses [B], inf where nothing fits, and what `gradient` needs of them."""
    return torch._ctc_loss(log_probs, *says, blank, True)


def gradient(
    log_probs: Tensor,  # [T, B, V]
    says: Says,
    blank: int,
    losses: Tensor,  # [B], as `recursion` gave them
    alpha: Tensor,
    weights: Tensor,  # [B], of each loss
) -> Tensor:
    """Of the weighted sum of losses for the logits; zero where a loss is inf."""
    result: Tensor = torch.ops.aten._ctc_loss_backward.default(
        weights, log_probs, *says, losses, alpha, blank, True
    )
    return result


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, says: Says, blank: int, way: Reducing) -> Tensor:
        log_probs = _log_probs(logits)
        losses, alpha = recursion(log_probs, says, blank)
        ctx.save_for_backward(log_probs, losses, alpha)
        ctx.says, ctx.blank, ctx.way, ctx.dtype = says, blank, way, logits.dtype
        return way.reduce(losses)

    @staticmethod
    def backward(ctx: Any, for_reduced: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ctc_loss")
        log_probs, losses, alpha = ctx.saved_tensors
        weights = ctx.way.share(for_reduced, losses)
        for_logits = gradient(log_probs, ctx.says, ctx.blank, losses, alpha, weights)
        return for_logits.to(ctx.dtype), None, None, None


def _log_probs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
