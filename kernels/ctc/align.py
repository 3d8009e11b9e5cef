"""`ctc_align`: which frames say which unit of a known text (Viterbi forced alignment)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backends import available_backends, triton_is_interpreted
from kernels.choice import choose_backend
from kernels.context import uncompiled
from kernels.ctc import align_torch
from kernels.ctc.checks import Labels, check_backend, check_scores, labels_of


class Alignment(NamedTuple):
    """The likeliest CTC path of each utterance; without one the score is -inf, from NaN NaN."""

    path: Tensor  # [B, T] int64, unit of each frame; blank past the end and where there is no path
    score: Tensor  # [B] log-probability of the path
    starts: Tensor  # [B, L] int64, first frame of each token; 0 where there is none
    ends: Tensor  # [B, L] int64, last frame + 1
    token_scores: Tensor  # [B, L] mean log-probability of the token in its frames; 0 where none


@uncompiled
@torch.no_grad()
def ctc_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
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
        targets, input_lengths, target_lengths: as for `kernels.ctc_loss`.
        blank: unit that stands for no token.
        backend: see `kernels.choose_backend`; here "torch" or "triton".

    Returns:
        Paths, spans and scores. Where frames are fewer than tokens and repeats together, the
        scores are -inf, the path is all blanks, and spans are 0 to 0. NaN in an utterance makes
        its own scores NaN, with such a path.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value. Values that are on a GPU are
            not looked at, as the host would have to wait: there a wrong length or unit makes the
            scores of its utterance NaN.
    """
    op = "ctc_align"
    check_backend(op, backend)
    check_scores(op, "log_probs", log_probs, (3,))
    V = log_probs.shape[2]
    labels = labels_of(
        op,
        log_probs,
        V,
        targets,
        input_lengths,
        target_lengths,
        blank,
        asynchronous=not log_probs.is_cpu,
    )
    there = [name for name in available_backends() if name != "reference"]
    device, interpreted = log_probs.device.type, triton_is_interpreted()
    name = choose_backend(backend, device, there, interpreted=interpreted)
    viterbi = align_torch.viterbi
    if name == "triton":
        from kernels.ctc import align_triton

        L = labels.targets.shape[1]
        if L <= align_triton.MOST_LABELS:
            viterbi = align_triton.viterbi
        elif backend is not None:
            raise ValueError(
                f"{op}: backend 'triton' takes up to {align_triton.MOST_LABELS} labels an "
                f"utterance, got {L}; use backend='torch'"
            )
    labels, wrong = _in_range(labels, len(log_probs), V)
    wide = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    states, score = viterbi(wide, labels.targets, labels.frames, labels.lengths, blank)
    return _alignment(log_probs, labels, states, score.masked_fill(wrong, torch.nan))


def _in_range(labels: Labels, T: int, V: int) -> tuple[Labels, Tensor]:
    """Labels that can be looked up, blank past the ends; and whose were not in range [B]."""
    targets, L = labels.targets, labels.targets.shape[1]
    lengths, frames = labels.lengths.clamp(0, L), labels.frames.clamp(0, T)
    inside = torch.arange(L, device=targets.device) < lengths[:, None]
    strange = (targets < 0) | (targets >= V) | (targets == labels.blank)
    wrong = (inside & strange).any(1) | (lengths != labels.lengths) | (frames != labels.frames)
    targets = targets.where(inside, labels.blank).clamp(0, V - 1)
    return labels._replace(targets=targets, lengths=lengths, frames=frames), wrong


def _alignment(
    log_probs: Tensor,  # [T, B, V]
    labels: Labels,
    states: Tensor,  # [B, T] as `align_torch.viterbi` gives them
    score: Tensor,  # [B]
) -> Alignment:
    """Read units and spans off the states, which never fall from frame to frame."""
    T, L = len(log_probs), labels.targets.shape[1]
    has_path = score.isfinite()[:, None]
    inside = (torch.arange(T, device=states.device) < labels.frames[:, None]) & has_path
    states = states.where(inside, 2 * L + 1)
    units = F.pad(labels.targets, (0, 1), value=labels.blank)
    path = units.gather(1, states // 2).where(inside & (states % 2 == 1), labels.blank)
    frame_scores = log_probs.transpose(0, 1).gather(2, path[..., None])[..., 0].double()
    until = F.pad(frame_scores.masked_fill(~inside, 0.0).cumsum(1), (1, 0))
    places = torch.arange(L, device=states.device)
    exists = places < labels.lengths[:, None]
    tokens = (2 * places + 1).expand(len(states), L).contiguous()
    starts = torch.searchsorted(states, tokens).where(exists & has_path, 0)
    ends = torch.searchsorted(states, tokens, right=True).where(exists & has_path, 0)
    means = (until.gather(1, ends) - until.gather(1, starts)) / (ends - starts).clamp(min=1)
    means = torch.where(has_path, means.to(score.dtype), score[:, None]).where(exists, 0.0)
    return Alignment(path, score, starts, ends, means)
