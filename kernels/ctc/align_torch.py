"""Viterbi over CTC's states in torch, the whole batch at once: the definition and the CPU path.

An utterance with L labels has 2L + 1 states: blank 0, label 0, blank 1, ..., label L-1, blank L.
A path stays in its state, goes on by one, or by two from a label to the next where these differ.
Where candidates are equal the earlier in this list wins. How many states were gone on is a byte a
state and frame, for the way back.
"""

import torch
from torch import Tensor


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
    S = 2 * targets.shape[1] + 1
    symbols = targets.new_full((B, S), blank)
    symbols[:, 1::2] = targets
    barred = log_probs.new_full((B, S), -torch.inf)  # on the scores of going on by two
    barred[:, 3::2].masked_fill_(targets[:, 1:] != targets[:, :-1], 0.0)
    inside = torch.arange(T, device=targets.device)[:, None] < input_lengths  # [T, B]
    reached = log_probs.new_full((B, S + 2), -torch.inf)  # the first two are no states
    reached[:, 2] = 0.0  # before the first frame
    stay, one, two = reached[:, 2:], reached[:, 1:-1], reached[:, :-2]
    moves = torch.empty(T, B, S, dtype=torch.uint8, device=targets.device)
    for frame, move, valid in zip(log_probs, moves, inside[..., None], strict=True):
        skipped = two + barred
        torch.gt(one, stay, out=move)
        best = torch.maximum(stay, one)
        move.masked_fill_(skipped > best, 2)
        best = torch.maximum(best, skipped) + frame.gather(1, symbols)
        torch.where(valid, best, stay, out=stay)
    moves.masked_fill_(~inside[..., None], 0)
    last = 2 * target_lengths[:, None]  # [B, 1]
    at_blank, at_label = stay.gather(1, last), one.gather(1, last)
    is_label = (at_label >= at_blank) & (last > 0)
    state = last - is_label.long()
    path = []
    for move in reversed(moves.unbind()):
        path.append(state)
        state = state - move.gather(1, state)
    return torch.cat(path[::-1], 1), at_label.where(is_label, at_blank)[:, 0]
