"""Viterbi over CTC's states in torch, the whole batch at once: the definition and the CPU path.

An utterance with L labels has 2L + 1 states: blank 0, label 0, blank 1, ..., label L-1, blank L.
They are kept as two rows, so that a step is three comparisons:

    label k:  stay, or from blank k, or from label k-1 where the labels differ
    blank k:  stay, or from label k-1

Where candidates are equal the earlier in this list wins. A frame's choices for label k and blank k
are one byte: bits 0-1 say how label k was reached, bit 2 how blank k was.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FROM_BLANK, FROM_LABEL, BLANK_FROM_LABEL = 1, 2, 4


def viterbi(
    log_probs: Tensor,  # [T, B, V] float32 or float64
    targets: Tensor,  # [B, L] int64, in the vocabulary everywhere
    input_lengths: Tensor,  # [B] int64
    target_lengths: Tensor,  # [B] int64
    blank: int,
) -> tuple[Tensor, Tensor]:
    """States of the likeliest path, [B, T] int64 (2k: blank k, 2k+1: label k), and its score [B].

    What stands past an utterance's end, or in one without a path (score -inf), is undefined.
    """
    T, B, _ = log_probs.shape
    never = -torch.inf
    places = torch.arange(targets.shape[1] + 1, device=targets.device)
    no_label = places >= target_lengths[:, None]  # [B, L + 1], as all that follows
    labels = F.pad(targets, (0, 1), value=blank)
    may_skip = F.pad(targets[:, 1:] != targets[:, :-1], (1, 1))[:, : len(places)]
    at_blank = log_probs.new_full(labels.shape, never)
    at_blank[:, 0] = 0.0  # before the first frame
    at_label = log_probs.new_full(labels.shape, never)
    choices = torch.zeros(T, *labels.shape, dtype=torch.uint8, device=targets.device)
    for t in range(T):
        before = F.pad(at_label[:, :-1], (1, 0), value=never)
        label, choice = at_label, choices[t]
        for code, score in ((FROM_BLANK, at_blank), (FROM_LABEL, before.where(may_skip, never))):
            better = score > label
            label = score.where(better, label)
            choice.masked_fill_(better, code)
        better = before > at_blank
        choice += BLANK_FROM_LABEL * better
        inside = (t < input_lengths)[:, None]
        label = (label + log_probs[t].gather(1, labels)).masked_fill(no_label, never)
        blank_score = before.where(better, at_blank) + log_probs[t, :, blank, None]
        at_label = label.where(inside, at_label)
        at_blank = blank_score.where(inside, at_blank)
        choice.masked_fill_(~inside, 0)
    last = target_lengths[:, None]
    ends_blank = at_blank.gather(1, last)[:, 0]
    ends_label = at_label.gather(1, (last - 1).clamp(min=0))[:, 0]
    is_label = (ends_label >= ends_blank) & (target_lengths > 0)
    scores = ends_label.where(is_label, ends_blank)
    states = targets.new_empty(B, T)
    place = target_lengths - is_label.long()
    for t in range(T - 1, -1, -1):
        states[:, t] = 2 * place + is_label
        choice = choices[t].gather(1, place[:, None])[:, 0]
        to_label = (choice & BLANK_FROM_LABEL).bool() & ~is_label
        way = choice & (FROM_BLANK | FROM_LABEL)
        place = place - (((way == FROM_LABEL) & is_label) | to_label).long()
        is_label = (is_label & (way != FROM_BLANK)) | to_label
    return states, scores
