"""Consistency regularisation of CTC: two views of an utterance are to give one answer.

Both views of a step are the same speech, warped and masked differently; each is drawn towards
what the network says of the other, frame by frame. What one view has lost to its masks must then
be told from its surroundings, and what differs between two warped voices be passed over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(
    log_probs: Tensor,  # [B, T, V]
    target: Tensor,  # [B, T, V] log-probabilities
    lengths: Tensor,  # [B] int64, valid frames
) -> Tensor:
    """Sum over t < lengths of KL(target || log_probs), in nats, a scalar."""
    each = F.kl_div(log_probs, target, reduction="none", log_target=True).sum(-1)  # [B, T]
    frame = torch.arange(each.shape[1], device=lengths.device)
    return each.masked_fill(frame >= lengths[:, None], 0.0).sum()


def consistency_loss(
    log_probs: Tensor,  # [2 B, T, V]: B utterances in one view, then in the other
    lengths: Tensor,  # [2 B] int64, valid frames
) -> Tensor:
    """Divergence of each view from the other, which stands still, summed over valid frames.

    sum over t < lengths of KL(other || view), for either view, in nats, a scalar; see Yao et al.
    2025, "CR-CTC: Consistency regularization on CTC for improved speech recognition".
    """
    first, second = log_probs.detach().chunk(2)
    return divergence(log_probs, torch.cat([second, first]), lengths)
