"""The loss by ATen's operators, on each utterance's own few symbols instead of all V.

The gradient of ATen's recursion costs in proportion to the vocabulary. Here it sees the distinct
labels of an utterance and the blank, K of them; what is done on all V is one softmax forward and
one backward, in chunks of frames that stay in the processor's cache. A small vocabulary has
little to leave out: see `loss_aten`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ctc import loss_aten
from kernels.ctc.checks import Labels

_IN_CACHE = 2**18  # logits, 1 MiB in float32


@dataclass(frozen=True)
class Alphabet:
    """Symbols that the utterances of a batch need, and their targets in terms of these."""

    symbols: Tensor  # [B, K], the blank first; places that are left over hold the blank too
    places: Tensor  # [B, L], where in `symbols` each label stands; past an end anything
    frames: list[int]  # [B]
    lengths: list[int]  # [B], labels
    blank: int


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
    frames, lengths = labels.frames.tolist(), labels.lengths.tolist()
    return Alphabet(symbols[:, :K], places.clamp(max=K - 1), frames, lengths, labels.blank)


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
    says = alphabet.places, alphabet.frames, alphabet.lengths
    losses, alpha = loss_aten.recursion(emissions, says, 0)
    if not with_gradient:
        return losses, None
    ones = torch.ones_like(losses)
    residual = loss_aten.gradient(emissions, says, 0, losses, alpha, ones)
    residual = residual.masked_fill(emissions == -torch.inf, 0.0)  # where ATen's is NaN
    used = alphabet.symbols != alphabet.blank
    used[:, 0] = True
    return losses, torch.where(used, residual, residual[..., :1])


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
    for b, (weight, frames) in enumerate(zip(weights.tolist(), alphabet.frames, strict=True)):
        end = max(0, frames - first) if weight else 0
        if end < len(result):
            result[end:, b] = 0
    return result


def _index(alphabet: Alphabet, logits: Tensor) -> Tensor:
    return alphabet.symbols.expand(len(logits), -1, -1)


def _frames_in_cache(logits: Tensor) -> int:
    T, B, V = logits.shape
    return max(1, _IN_CACHE // (B * V)) if logits.device.type == "cpu" else T
