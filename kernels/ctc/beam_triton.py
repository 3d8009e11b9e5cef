"""The beam search in Triton: one launch for all frames, one for the traces. The host never waits.

How it works: `beam_kernels`. Before and after the launches there are some operators of torch,
their number independent of T: the units that may extend a prefix, the scores of ending, and what
`Hypotheses` says of the traces.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from kernels.ctc import beam_kernels, beam_torch
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram
from kernels.ctc.scorer_kernels import HotwordTables, NGramTables, Scoring, TreeTables

if TYPE_CHECKING:
    from kernels.ctc.beam import Scorer, Speller

_FEWEST_LANES = 4  # 2**4: as many possible parents are compared at once


def takes(lm: "Scorer | Speller | None", hotwords: "Scorer | None") -> bool:
    """Whether the kernels know these scorers; a class derived from ours may do something else."""
    return type(lm) in (NGram, WordNGram, type(None)) and type(hotwords) in (Hotwords, type(None))


@dataclass(frozen=True)
class Search(beam_torch.Search):
    """As `beam_torch.Search`, of scorers that `takes` accepts."""

    def _through(self, log_probs: Tensor, lengths: Tensor) -> beam_torch.Found:
        T, B, V = log_probs.shape
        K, C, R = self.beam, self.units, self.speller.options
        units = self._units(log_probs)
        at_blank, at_label, extra = (log_probs.new_empty(B, K) for _ in range(3))
        context, node = (lengths.new_empty(B, K) for _ in range(2))
        ways, words = lengths.new_empty(T, B, 2 * K), lengths.new_empty(T, B, K)
        marks = lengths.new_zeros(B, K, V, R, dtype=torch.int32)
        start, scoring = self._scoring()
        beam_kernels.search_kernel[(B,)](
            *(
                log_probs,
                lengths,
                units,
                marks,
                at_blank,
                at_label,
                extra,
                context,
                node,
                ways,
                words,
            ),
            *(T, B, K, C, V, self.blank, *log_probs.stride(), *units.stride()[:2]),
            *(start, scoring),
            R=R,
            LOG_ADD=self.combine is torch.logaddexp,
            **_plan(K, K * C * R),
        )
        states = {NGram: context, Hotwords: node}
        after = tuple(states[type(scorer)] for scorer in self.scorers)
        return beam_torch.Found(at_blank, at_label, extra, context, after, ways, words)

    def _walk(
        self, found: beam_torch.Found, lengths: Tensor, state: Tensor, V: int
    ) -> tuple[Tensor, Tensor]:
        T, B, K = found.words.shape
        N = state.shape[1]
        spoken = state.new_full((B, N, T), self.blank)
        ended = torch.full_like(spoken, -1)
        beam_kernels.trace_kernel[(B,)](
            *(found.ways, found.words, lengths, state, spoken, ended, T, B, K, V, N),
            BLOCK=triton.next_power_of_2(N),
            num_warps=1,
        )
        return spoken, ended

    def _units(self, log_probs: Tensor) -> Tensor:
        """Units that may extend a prefix, [T, B, C] int64."""
        T, B, V = log_probs.shape
        every = torch.arange(V, device=log_probs.device)
        if self.units == V - 1:
            others = every[:-1] + (every[:-1] >= self.blank)
            return others.expand(T, B, V - 1)
        likely = log_probs.masked_fill(every == self.blank, -torch.inf)
        return likely.topk(self.units, sorted=False).indices

    def _scoring(self) -> tuple[int, Scoring]:
        """State of the language model at the beginning, and the tables of all scorers."""
        start, weight = self.speller.start, self.speller_weight
        ngram = tree = hotwords = None
        if isinstance(self.speller, WordNGram):
            ngram, tree = _ngram_tables(self.speller.model), _tree_tables(self.speller)
        for scorer, its_weight in zip(self.scorers, self.weights, strict=True):
            if isinstance(scorer, NGram):
                start, weight, ngram = scorer.start, its_weight, _ngram_tables(scorer)
            elif isinstance(scorer, Hotwords):
                tables = scorer.after, scorer.complete, scorer.begun
                hotwords = HotwordTables(*tables, scorer.after.shape[1])
        extra = weight, self.token_score, self.word_score
        return start, Scoring(ngram, tree, hotwords, *map(float, extra))


def _ngram_tables(ngram: NGram) -> NGramTables:
    tables = ngram.words, ngram.keys, ngram.log_probs, ngram.targets, ngram.backoffs, ngram.shorter
    return NGramTables(*tables, len(ngram.keys), ngram.num_words, ngram.order)


def _tree_tables(lexicon: WordNGram) -> TreeTables:
    tables = lexicon.keys, lexicon.children, lexicon.words, lexicon.goes_on, lexicon.promises
    return TreeTables(*tables, len(lexicon.keys), lexicon.num_units, len(lexicon.model.backoffs))


def _plan(K: int, extensions: int) -> dict[str, int]:
    """Sizes of a program for K prefixes and all their extensions: no registers are spilled.

    Known from compilation, up to 128 prefixes. Which sizes are fastest is not known.
    """
    lanes = max(_FEWEST_LANES, _exponent(K))
    tile = max(lanes, min(10 if lanes <= 6 else 9, _exponent(extensions)))
    return {"LOG": lanes, "HALVINGS": tile - lanes, "num_warps": max(1, 2**tile // 128)}


def _exponent(size: int) -> int:
    """Of the smallest power of two that is not below it."""
    return (size - 1).bit_length()
