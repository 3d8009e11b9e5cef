"""The definition: the forward recursion frame by frame, differentiated by autograd. Slow.

CTC (Graves et al. 2006, section 4.1): a path names one symbol, label or blank, a frame; taking
out repetitions and then blanks leaves what it says. The loss of a target is -log of the
probability of all paths that say it. They are the ways through 2L + 1 states,
blank y1 blank y2 ... yL blank, that start in the first two, end in the last two, and at each
frame stay, go on by one, or by two over a blank that stands between different labels.
"""

import torch
from torch import Tensor

from kernels.ctc.checks import Labels


def losses(logits: Tensor, labels: Labels) -> Tensor:
    """-log p(target | logits) [B] in nats, in the dtype of `logits` [T, B, V], float32 at least.

    inf, with a gradient of zero, where no path is short enough.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.stack(
        [
            _loss(logits[:frames, b].to(dtype), labels.targets[b, :length], labels.blank)
            for b, (frames, length) in enumerate(
                zip(labels.frames.tolist(), labels.lengths.tolist(), strict=True)
            )
        ]
    )


def _loss(logits: Tensor, target: Tensor, blank: int) -> Tensor:
    length = len(target)
    log_probs = logits.log_softmax(-1)  # [T, V]
    states = target.new_full((2 * length + 1,), blank)
    states[1::2] = target
    two_allowed = torch.zeros_like(states, dtype=torch.bool)
    two_allowed[1:2] = True  # from before the first state, where every path begins
    two_allowed[3::2] = target[1:] != target[:-1]

    never = log_probs.new_full((2,), -torch.inf)
    begin = log_probs.new_tensor([-torch.inf, 0.0])
    reached = torch.cat([begin, never[:1].expand(2 * length + 1)])  # two more than states
    reached = reached + log_probs[:0].sum()  # 0, but connected to the graph without frames too
    for frame in log_probs:
        two = torch.where(two_allowed, reached[:-2], -torch.inf)
        reached = torch.cat([never, frame[states] + _log_add(reached[2:], reached[1:-1], two)])
    return -_log_add(reached[-2], reached[-1])


def _log_add(*terms: Tensor) -> Tensor:
    """log(sum(exp(terms))), -inf with a gradient of zero where all of them are -inf."""
    stacked = torch.stack(terms)
    top = stacked.detach().amax(0)
    top = torch.where(top == -torch.inf, 0.0, top)
    total = (stacked - top).exp().sum(0)
    impossible = total == 0
    return torch.where(impossible, -torch.inf, top + torch.where(impossible, 1.0, total).log())
