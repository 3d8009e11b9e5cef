"""Emissions -> words: greedy path, and beam search with a lexicon and an n-gram model.

The beam search is flashlight's lexicon decoder, the one `torchaudio.models.decoder.ctc_decoder`
wraps. It is driven directly because torchaudio's wrapper drops the frame at which each word
ends, counts frames from 1, and needs four times as long to build the lexicon's tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from asr.config import DecodeConfig
from asr.tokenizer import PhonemeTokenizer, Tokenizer

BLANK = 0


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance. Frames are output frames of the network."""

    words: tuple[str, ...]  # phones where a phoneme model is decoded greedily
    tokens: tuple[int, ...]  # units, blanks and repeats removed
    frames: tuple[int, ...]  # frame of each token's first emission
    score: float  # log-probability (natural), with the language model's part if there is one
    word_frames: tuple[tuple[int, int], ...]  # first frame, last frame + 1 of each word


class Decoder(Protocol):
    """Turns a batch of emissions into one hypothesis an utterance."""

    def __call__(
        self,
        log_probs: Tensor,  # [B, T', V] float32, any device
        lengths: Tensor,  # [B] int64
    ) -> list[Hypothesis]:
        """Decode each utterance's first `lengths` frames."""


def greedy_decode(
    log_probs: Tensor,  # [B, T', V]
    lengths: Tensor,  # [B] int64
) -> list[list[tuple[int, int, int]]]:
    """Best path of CTC (Graves et al. 2006): the likeliest unit of each frame, repeats merged.

    Returns:
        For each utterance its (unit, first frame, last frame + 1), without blanks.
    """
    B, T, _ = log_probs.shape
    if T == 0:
        return [[] for _ in range(B)]
    frames = torch.arange(T, device=log_probs.device)
    best = log_probs.argmax(-1).masked_fill(frames >= lengths.to(frames.device)[:, None], BLANK)
    changed = torch.ones_like(best, dtype=torch.bool)
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    # Every run's end is the next run's start; the last one ends with the utterance's frames.
    spans: list[list[tuple[int, int, int]]] = [[] for _ in range(B)]
    rows, starts = (index.tolist() for index in changed.nonzero(as_tuple=True))
    units = best[changed].tolist()
    for row, unit, start, following, end in zip(
        rows, units, starts, [*rows[1:], B], [*starts[1:], 0], strict=True
    ):
        if unit != BLANK:
            spans[row].append((unit, start, end if following == row else T))
    return spans


def join_words(
    tokenizer: Tokenizer, tokens: Sequence[int]
) -> Iterator[tuple[str, int, int]]:
    """Words of a unit sequence, each with its first token and its last token + 1."""
    if isinstance(tokenizer, PhonemeTokenizer):
        for index, token in enumerate(tokens):
            yield tokenizer.units[token], index, index + 1
        return
    starts = [
        index
        for index, token in enumerate(tokens)
        if index == 0 or tokenizer.units[token].startswith("▁")
    ]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        if word := tokenizer.decode(tokens[start:end]).strip():
            yield word, start, end


class GreedyDecoder:
    """Best path; the words of a phoneme model are its phones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """Decode a batch; `score` is the log-probability of the best path."""
        frames = torch.arange(log_probs.shape[1], device=log_probs.device)
        best = log_probs.max(-1).values if log_probs.shape[1] else log_probs.sum(-1)
        inside = frames < lengths.to(frames.device)[:, None]
        scores = best.masked_fill(~inside, 0.0).sum(-1).tolist()
        return [
            self._hypothesis(spans, score)
            for spans, score in zip(greedy_decode(log_probs, lengths), scores, strict=True)
        ]

    def _hypothesis(self, spans: list[tuple[int, int, int]], score: float) -> Hypothesis:
        tokens = tuple(unit for unit, _, _ in spans)
        words = list(join_words(self.tokenizer, tokens))
        return Hypothesis(
            words=tuple(word for word, _, _ in words),
            tokens=tokens,
            frames=tuple(start for _, start, _ in spans),
            score=score,
            word_frames=tuple((spans[first][1], spans[last - 1][2]) for _, first, last in words),
        )


def build_decoder(config: DecodeConfig, tokenizer: Tokenizer, directory: Path) -> Decoder:
    """The decoder that `config` asks for.

    Args:
        config: method, beam and weights.
        tokenizer: the model's.
        directory: model directory with `lexicon.txt` and `lm.arpa.gz` or `lm.arpa`.

    Raises:
        DataError: beam search, and the lexicon or the language model is missing or unreadable.
    """
    return GreedyDecoder(tokenizer)
