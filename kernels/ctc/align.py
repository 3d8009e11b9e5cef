"""`ctc_align`: which frames say which unit of a known text (Viterbi forced alignment)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.choice import choose_backend
from kernels.ctc import align_torch, arguments


class Alignment(NamedTuple):
    """The likeliest CTC path of each utterance; an utterance without one has score -inf."""

    path: Tensor  # [B, T] int64, unit of each frame; blank past the end and where there is no path
    score: Tensor  # [B] log-probability of the path
    starts: Tensor  # [B, L] int64, first frame of each token; 0 where there is none
    ends: Tensor  # [B, L] int64, last frame + 1
    token_scores: Tensor  # [B, L] mean log-probability of the token in its frames; 0 where none


@torch.no_grad()
def ctc_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    *,
    backend: str | None = None,
) -> Alignment:
    """Align targets to frames: the most likely of all CTC paths that spell the targets.

    Same path and frame scores as `torchaudio.functional.forced_align`, for batches. Ties are
    broken in favour of staying, then of coming from the blank.

    Args:
        log_probs: [T, B, V], natural log-probabilities, any strides. float16 and bfloat16 are
            computed in float32. No gradient flows.
        targets: [B, L] int64, padded with anything, or one after the other, [sum of lengths].
        input_lengths: [B] int64, frames of each utterance, 0 to T.
        target_lengths: [B] int64, tokens of each utterance, 0 to L.
        blank: unit that stands for no token.
        backend: see `kernels.choose_backend`; here "torch" or "triton".

    Returns:
        Paths, spans and scores. An utterance with fewer frames than tokens and repeats together
        has score -inf, an all-blank path, and spans 0 to 0 of score -inf. NaN reaches the scores
        of its own utterance alone.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value. The values of tensors
            on a GPU are not looked at, as that would wait for it: lengths outside the range count
            as its nearest end there, and units outside the vocabulary are an undefined result.
    """
    arguments.check_log_probs("ctc_align", log_probs, blank)
    input_lengths = arguments.frame_counts("ctc_align", "input_lengths", input_lengths, log_probs)
    targets, target_lengths = arguments.padded_targets(
        "ctc_align", targets, target_lengths, log_probs, blank
    )
    name = choose_backend(backend, log_probs.device.type, ("triton", "torch"))
    viterbi = align_torch.viterbi
    if name == "triton":
        from kernels.ctc import align_triton

        viterbi = align_triton.viterbi
    states, score = viterbi(
        arguments.computable(log_probs), targets, input_lengths, target_lengths, blank
    )
    targets = F.pad(targets, (0, 1), value=blank)  # the last blank's place
    return _alignment(log_probs, targets, input_lengths, target_lengths, states, score, blank)


def _alignment(
    log_probs: Tensor,  # [T, B, V]
    targets: Tensor,  # [B, L + 1]
    input_lengths: Tensor,
    target_lengths: Tensor,
    states: Tensor,  # [B, T] as `align_torch.viterbi` gives them
    score: Tensor,  # [B]
    blank: int,
) -> Alignment:
    """Read units and spans off the states, which never fall from frame to frame."""
    T, L = len(log_probs), targets.shape[1] - 1
    possible = (score != -torch.inf)[:, None]
    inside = (torch.arange(T, device=states.device) < input_lengths[:, None]) & possible
    states = states.where(inside, 2 * L + 1)
    is_label = inside & (states % 2 == 1)
    path = targets.gather(1, states // 2).where(is_label, blank)
    frame_scores = log_probs.transpose(0, 1).gather(2, path[..., None])[..., 0].double()
    until = F.pad(frame_scores.masked_fill(~inside, 0.0).cumsum(1), (1, 0))
    places = torch.arange(L, device=states.device)
    exists = (places < target_lengths[:, None]) & possible
    tokens = (2 * places + 1).expand(len(states), L).contiguous()
    starts = torch.searchsorted(states, tokens).where(exists, 0)
    ends = torch.searchsorted(states, tokens, right=True).where(exists, 0)
    token_scores = (until.gather(1, ends) - until.gather(1, starts)) / (ends - starts).clamp(min=1)
    token_scores = token_scores.masked_fill(
        (places < target_lengths[:, None]) & ~possible, -torch.inf
    )
    return Alignment(path, score, starts, ends, token_scores.to(score.dtype))
