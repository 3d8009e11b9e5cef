"""A flat start for CTC: frame-wise cross-entropy on evenly spread units, for the first steps.

CTC alone first learns that blank is always a fair guess, and stays on that plateau for
hundreds of steps. As the flat start of Kaldi's monophone training does, the first steps spread
each target evenly over the frames that are loud enough to be speech; quiet frames are blank.
Rough as it is, it teaches which units sound how, and CTC then finds the alignments from there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LOGITS_AT_ONCE = 2**23  # 32 MiB in float32: with many subwords those of a batch would not fit


def loudness(
    features: Tensor,  # [B, T, D] log energies
    frames: Tensor,  # [B] int64, valid ones
    factor: int,  # of them in an output frame
) -> Tensor:  # [B, T'], T' = ceil(T / factor)
    """Mean log energy of each output frame; past its end an utterance stays as loud as it ended."""
    steps = torch.arange(-(-features.shape[1] // factor) * factor, device=features.device)
    valid = torch.minimum(steps, (frames - 1).clamp(min=0)[:, None])  # [B, T' factor]
    parts: Tensor = features.mean(-1).gather(1, valid).unflatten(1, (-1, factor))
    return parts.mean(-1)


def flat_alignment(
    loudness: Tensor,  # [B, T']
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
    output: nn.Linear,  # S -> V
    hidden: Tensor,  # [B, T', S]
    loudness: Tensor,  # [B, T'], and the next three: see `flat_alignment`
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
) -> Tensor:
    """Cross-entropy per frame on the flat alignment, times the number of units, a scalar.

    The scale is that of a summed CTC loss per unit, so that the optimiser sees one size. Logits
    exist for some frames at a time, and are computed again for the backward pass.
    """
    labels = flat_alignment(loudness, lengths, targets, target_lengths)

    def cross_entropy(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = output(hidden).float()
        return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")

    size = max(1, _LOGITS_AT_ONCE // output.out_features)
    chunks = zip(hidden.flatten(0, 1).split(size), labels.flatten().split(size), strict=True)
    losses = [
        checkpoint(cross_entropy, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return torch.stack(losses).sum() / lengths.sum() * len(targets)
