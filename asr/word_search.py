"""Beam search for words on one core: flashlight's lexicon decoder with KenLM, driven directly.

It is what `torchaudio.models.decoder.ctc_decoder` wraps. The wrapper drops the frame at which a
word ends, takes twice as long to build the lexicon's tree, and has no answer to a last unit that
is held for several frames (see `asr.decode.BeamDecoder`). No torch here: a process that only
searches starts in a quarter of the time.
"""

import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions
from numpy.typing import NDArray

from asr.config import DecodeConfig
from asr.word_graph import WordGraph

BLANK = 0
_ALTERNATIVES = 20  # hypotheses that are read: for a second pass, and for how sure a word is


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance. Frames are output frames of the network."""

    words: tuple[str, ...]  # phones where a phoneme model is decoded greedily
    tokens: tuple[int, ...]  # units, blanks and repeats removed
    frames: tuple[int, ...]  # frame of each token's first emission
    score: float  # greedy: log-probability of the path; beam: with the language model's part
    word_frames: tuple[tuple[int, int], ...]  # first frame, last frame + 1 of each word
    lm_score: float = 0.0  # beam: log10-probability that the n-gram gives the words
    agreement: tuple[float, ...] = ()  # beam: of each word, share of the best hypotheses with it
    confidence: tuple[float, ...] = ()  # of each word, how likely it is right


Alternatives = tuple[Hypothesis, ...]  # of one utterance, best first


@dataclass(frozen=True)
class Columns:
    """An utterance as the search reads it: the frames that say something, see `WordGraph`."""

    emissions: NDArray[np.float32]  # [K, 3 V] log-probabilities, finite, C-contiguous
    frames: tuple[int, ...]  # K of the network's; -1 for one that was put before them


class WordSearch:
    """Beam search over the words of a `WordGraph`, by the weights of a `DecodeConfig`."""

    def __init__(self, config: DecodeConfig, graph: WordGraph) -> None:
        self.config = config
        self._graph = graph
        hot = [column % graph.num_units for column, _ in graph.bonuses]
        self._units = [*range(graph.num_units)] * 3 + hot  # of each column
        options = LexiconDecoderOptions(
            beam_size=config.beam_size,
            beam_size_token=3 * config.beam_size_token + len(graph.bonuses),  # columns
            beam_threshold=config.beam_threshold,
            lm_weight=config.lm_weight,
            word_score=config.word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=CriterionType.CTC,
        )
        silence = graph.num_units  # the blank as a last frame: none
        self._decoder = LexiconDecoder(
            options, graph.trie, graph.language_model, silence, BLANK, -1, [], False
        )
        # flashlight's decoder holds one search: two at once would end in a segmentation fault.
        self._one_at_a_time = threading.Lock()

    def __call__(self, columns: Columns) -> Alternatives:
        """Search one utterance; threads take turns. There is at least one hypothesis."""
        if not columns.frames:
            return (Hypothesis((), (), (), 0.0, ()),)
        emissions = self._with_bonuses(columns.emissions)
        with self._one_at_a_time:
            results = self._decoder.decode(emissions.ctypes.data, *emissions.shape)
            found = [self._read(result, columns.frames) for result in results[:_ALTERNATIVES]]
        # flashlight leaves those of equal score in the order of their addresses.
        return tuple(sorted(found, key=lambda said: (-said.score, said.words, said.word_frames)))

    def _with_bonuses(self, emissions: NDArray[np.float32]) -> NDArray[np.float32]:
        """[K, 3 V] -> [K, 3 V + columns of hotwords]."""
        if not self._graph.bonuses:
            return emissions
        repeated, bonuses = zip(*self._graph.bonuses, strict=True)
        hot = emissions[:, repeated] + self.config.lm_weight * np.array(bonuses, np.float32)
        return np.concatenate([emissions, hot], axis=1)

    def _read(self, result: Any, kept: Sequence[int]) -> Hypothesis:
        """Read the best path; flashlight adds a step before the first frame and after the last."""
        tokens: list[int] = []
        frames: list[int] = []
        words: list[str] = []
        word_frames: list[tuple[int, int]] = []
        start = None  # first frame of the word that is being read
        previous = BLANK
        for frame, column, label in zip(kept, result.tokens[1:-1], result.words[1:-1], strict=True):
            token = self._units[column]
            within = start is not None or token == self._graph.separator
            if token != BLANK and not (token == previous and within) and frame >= 0:
                tokens.append(token)
                frames.append(frame)
                if start is None and token != self._graph.separator:
                    start = frame
            if label >= 0 and start is not None:
                words.append(self._graph.words[label])
                word_frames.append((start, frame + 1))
                start = None
            previous = token
        return Hypothesis(
            tuple(words),
            tuple(tokens),
            tuple(frames),
            result.score,
            tuple(word_frames),
            result.lmScore,
        )


def best_of(alternatives: Alternatives) -> Hypothesis:
    """The first, with how far the others agree."""
    best, *others = alternatives
    return replace(best, agreement=tuple(_agreement(best, others)))


def _agreement(best: Hypothesis, others: Sequence[Hypothesis]) -> Iterator[float]:
    """Of each word of `best`, the share of the probability of all that have it at that time."""
    scores = [best.score, *(other.score for other in others)]
    probabilities = [math.exp(score - best.score) for score in scores]
    for word, (first, end) in zip(best.words, best.word_frames, strict=True):
        share = probabilities[0]
        for other, probability in zip(others, probabilities[1:], strict=True):
            if word in other.words[_overlapping(other.word_frames, first, end)]:
                share += probability
        yield share / sum(probabilities)


def _overlapping(spans: Sequence[tuple[int, int]], first: int, end: int) -> slice:
    """Where those are that share a frame with first..end - 1; one after the other, none empty."""
    start = bisect_right(spans, first, key=itemgetter(1))
    return slice(start, bisect_left(spans, end, lo=start, key=itemgetter(0)))
