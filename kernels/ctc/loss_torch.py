"""The loss by ATen's operators, on each utterance's own few symbols instead of all V.

ATen's recursion and its gradient cost in proportion to the vocabulary. Here they see the
distinct labels of an utterance and the blank, K of them; what is done on all V is one softmax
forward and one backward, in chunks of frames that stay in the processor's cache. A small
vocabulary has little to leave out: there ATen's own way is the fastest, as long as it is right.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ctc.checks import Labels

_IN_CACHE = 2**18  # logits, 1 MiB in float32
SMALL = 256  # V up to which finding the needed symbols costs more than it saves


def suits_aten(logits: Tensor) -> bool:
    """Whether `aten_losses` is right and the fastest.

    The loss alone costs ATen nothing for symbols that no label names. Its gradient is NaN at
    symbols of probability zero, and wherever the padding is not finite.
    """
    if not logits.requires_grad:
        return True
    if logits.shape[2] > SMALL:
        return False
    least, most = logits.detach().aminmax()
    return least.item() > -torch.inf and most.item() < torch.inf


def aten_losses(logits: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [T, B, V], losses [B] and ATen's alpha."""
    log_probs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    frames, lengths = labels.frames.tolist(), labels.lengths.tolist()
    losses, alpha = torch._ctc_loss(log_probs, labels.targets, frames, lengths, labels.blank, True)
    return log_probs, losses, alpha


def aten_gradient(
    log_probs: Tensor,  # [T, B, V]
    losses: Tensor,  # [B]
    alpha: Tensor,
    labels: Labels,
    weights: Tensor,  # [B], of each loss
) -> Tensor:
    """Of the weighted sum of losses for the logits; zero where a loss is inf.

    torch.ctc_loss, which calls this operator, either has a gradient of NaN there or a loss of 0.
    """
    frames, lengths = labels.frames.tolist(), labels.lengths.tolist()
    arguments = (log_probs, labels.targets, frames, lengths, losses, alpha, labels.blank, True)
    gradient: Tensor = torch.ops.aten._ctc_loss_backward(weights, *arguments)
    return gradient


@dataclass(frozen=True)
class Alphabet:
    """Symbols that the utterances of a batch need, and their targets in terms of these."""

    symbols: Tensor  # [B, K], the blank first; places that are left over hold the blank too
    places: Tensor  # [B, L], where in `symbols` each label stands; past an end anything
    labels: Labels


def alphabet(labels: Labels, T: int, V: int) -> Alphabet:
    """Number the distinct labels of each utterance from 1."""
    B, L = labels.targets.shape
    inside = torch.arange(L, device=labels.targets.device) < labels.lengths.unsqueeze(1)
    ordered, order = torch.where(inside, labels.targets, V).sort(dim=1)  # V: past the end
    rank = torch.ones_like(ordered)
    rank[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = rank.cumsum(1)
    symbols = ordered.new_full((B, L + 1), labels.blank)
    symbols.scatter_(1, rank, torch.where(ordered < V, ordered, labels.blank))
    K = 1 + int(torch.where(ordered < V, rank, 0).amax()) if L else 1
    places = torch.empty_like(rank).scatter_(1, order, rank)
    return Alphabet(symbols[:, :K], places.clamp(max=K - 1), labels)


def emissions(logits: Tensor, alphabet: Alphabet, first: int = 0) -> Tensor:
    """Log-probabilities [T, B, K] of the symbols, in float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    chunks = [
        chunk.log_softmax(-1, dtype=dtype).gather(2, _index(alphabet, chunk))
        for chunk in logits.split(_frames_in_cache(logits))
    ]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def occupy(
    emissions: Tensor, alphabet: Alphabet, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses [B], and probability minus occupancy [T, B, K]: the logits' gradient there."""
    labels = alphabet.labels
    with torch.enable_grad():
        leaf = emissions.detach().requires_grad_(with_gradient)
        losses = F.ctc_loss(leaf, alphabet.places, labels.frames, labels.lengths, reduction="none")
        if not with_gradient:
            return losses, None
        # ATen's is not the derivative for `leaf`, but already the one for the logits.
        (residual,) = torch.autograd.grad(losses.sum(), leaf)
    residual = residual.masked_fill(emissions == -torch.inf, 0.0)  # where ATen's is NaN
    used = alphabet.symbols != labels.blank
    used[:, 0] = True
    return losses.detach(), torch.where(used, residual, residual[..., :1])


def gradient(
    logits: Tensor,
    residual: Tensor,
    alphabet: Alphabet,
    weights: Tensor,  # [B], of each loss; an utterance of weight 0 gets zeros whatever it holds
    first: int = 0,  # frame that the logits begin with
) -> Tensor:
    """Of the weighted sum of losses for `logits`, in their dtype and strides."""
    result = torch.empty_like(logits)
    weighted = residual * weights.unsqueeze(-1)
    size = _frames_in_cache(logits)
    for chunk, replaced, part in zip(
        logits.split(size), weighted.split(size), result.split(size), strict=True
    ):
        probability = chunk.softmax(-1, dtype=residual.dtype)
        probability *= weights.unsqueeze(-1)
        part.copy_(probability.scatter_(2, _index(alphabet, chunk), replaced))
    ends = torch.where(weights == 0, 0, alphabet.labels.frames) - first
    for b, end in enumerate(ends.clamp(min=0).tolist()):
        if end < len(result):
            result[end:, b] = 0
    return result


def _index(alphabet: Alphabet, logits: Tensor) -> Tensor:
    return alphabet.symbols.expand(len(logits), -1, -1)


def _frames_in_cache(logits: Tensor) -> int:
    T, B, V = logits.shape
    return max(1, _IN_CACHE // (B * V)) if logits.device.type == "cpu" else T
