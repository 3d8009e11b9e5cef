"""A flat start for CTC: frame-wise cross-entropy on evenly spread units, for the first steps.

CTC alone first learns that blank is always a fair guess, and stays on that plateau for
hundreds of steps. As the flat start of Kaldi's monophone training does, the first steps spread
each target evenly over the frames that are loud enough to be speech; quiet frames are blank.
Rough as it is, it teaches which units sound how, and CTC then finds the alignments from there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def flat_alignment(
    loudness: Tensor,  # [B, T'] mean log energy of each output frame
    lengths: Tensor,  # [B] int64, output frames
    targets: Tensor,  # [sum of target_lengths] int64
    target_lengths: Tensor,  # [B] int64
) -> Tensor:  # [B, T'] int64; -1 past the end
    """A unit for each frame: the target's units in order, evenly over the loud frames."""
    labels = torch.full(loudness.shape, -1, dtype=torch.int64)
    rows = zip(
        loudness.cpu(),
        lengths.tolist(),
        targets.cpu().split(target_lengths.tolist()),
        strict=True,
    )
    for b, (loud, length, target) in enumerate(rows):
        loud = loud[:length]
        low, high = loud.quantile(torch.tensor([0.05, 0.95]))
        speech = loud >= low + 0.4 * (high - low)
        place = (speech.cumsum(0) - 1).clamp(min=0) * len(target) // max(1, int(speech.sum()))
        labels[b, :length] = torch.where(speech, target[place], 0)
    return labels.to(loudness.device)


def flat_start_loss(
    log_probs: Tensor,  # [B, T', V]
    lengths: Tensor,  # [B]
    features: Tensor,  # [B, T, D] log energies
    targets: Tensor,
    target_lengths: Tensor,
) -> Tensor:
    """Cross-entropy per frame on the flat alignment, times the number of units, a scalar.

    The scale is that of a summed CTC loss per unit, so that the optimiser sees one size.
    """
    pooled = F.adaptive_avg_pool1d(features.mean(-1)[:, None], log_probs.shape[1])[:, 0]
    labels = flat_alignment(pooled, lengths, targets, target_lengths)
    loss = F.nll_loss(log_probs.flatten(0, 1), labels.flatten(), ignore_index=-1)
    return loss * len(targets)
