"""Emissions -> words: greedy path, and beam search with a lexicon and an n-gram model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from asr.confidence import AS_HEARD, with_confidence
from asr.config import DecodeConfig
from asr.errors import DataError
from asr.rescoring import Rescorer, load_rescorer
from asr.search_processes import SearchProcesses, processes_for
from asr.tokenizer import SEPARATOR, PhonemeTokenizer, Tokenizer
from asr.word_graph import separator_of
from asr.word_search import BLANK, Alternatives, Columns, Hypothesis, best_of

_SURE_BLANK = math.log(0.9)  # in a run of blanks this likely, all but the first are passed over
_NEVER = -1e4  # log-probability; flashlight adds up scores, so that it must be finite
_WORD_MARKS = ("▁", SEPARATOR)  # what a unit that begins a word begins with


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
    blank_penalty: float = 0.0,
) -> list[list[tuple[int, int, int]]]:
    """Best path of CTC (Graves et al. 2006): the likeliest unit of each frame, repeats merged.

    `blank_penalty` is taken off the blank's log-probability: wherever a network is unsure, it
    shares its doubt among the units, and the blank wins with less than half.

    Returns:
        For each utterance its (unit, first frame, last frame + 1), without blanks.
    """
    B, T, _ = log_probs.shape
    if T == 0:
        return [[] for _ in range(B)]
    frames = torch.arange(T, device=log_probs.device)
    best = _penalize(log_probs, blank_penalty).argmax(-1)
    best = best.masked_fill(frames >= lengths.to(frames.device)[:, None], BLANK)
    changed = torch.ones_like(best, dtype=torch.bool)
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    rows, starts = (index.tolist() for index in changed.nonzero(as_tuple=True))
    # A run ends where the next one starts: in the same utterance, or at the start of the next.
    ends = [start or T for start in [*starts[1:], 0]]
    spans: list[list[tuple[int, int, int]]] = [[] for _ in range(B)]
    for row, unit, start, end in zip(rows, best[changed].tolist(), starts, ends, strict=True):
        if unit != BLANK:
            spans[row].append((unit, start, end))
    return spans


def _penalize(log_probs: Tensor, blank_penalty: float) -> Tensor:  # [B, T', V]
    penalty = log_probs.new_zeros(log_probs.shape[-1])
    penalty[BLANK] = blank_penalty
    return log_probs - penalty


def join_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Words of a unit sequence, each with its first token and its last token + 1.

    A separator between words belongs to neither; a phone is a word of its own.
    """
    units = [tokenizer.units[token] for token in tokens]
    if isinstance(tokenizer, PhonemeTokenizer):
        yield from ((unit, index, index + 1) for index, unit in enumerate(units))
        return
    starts = [
        0,
        *(index for index, unit in enumerate(units) if index and unit.startswith(_WORD_MARKS)),
    ]
    for start, end in zip(starts, [*starts[1:], len(units)], strict=True):
        if word := tokenizer.decode(tokens[start:end]):
            yield word, start + (units[start] == SEPARATOR), end


class GreedyDecoder:
    """Best path; the words of a phoneme model are its phones."""

    def __init__(self, tokenizer: Tokenizer, blank_penalty: float = 0.0) -> None:
        self.tokenizer = tokenizer
        self.blank_penalty = blank_penalty

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """Decode a batch; `score` is the best path's log-probability less its blanks' penalties."""
        heard = log_probs.cpu()
        log_probs = _penalize(log_probs, self.blank_penalty)
        paths = greedy_decode(log_probs, lengths)
        frames = torch.arange(log_probs.shape[1], device=log_probs.device)
        inside = frames < lengths.to(frames.device)[:, None]
        scores = (log_probs.amax(-1) * inside).sum(-1).tolist()
        return [
            with_confidence(self._hypothesis(spans, score), row, AS_HEARD)
            for spans, score, row in zip(paths, scores, heard, strict=True)
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


class BeamDecoder:
    """CTC beam search over the words of a `Vocabulary`, wherever `words` searches.

    Each hypothesis maximises log p(units | audio) + lm_weight * log10 p(words) + word_score *
    number of words, where p(units | audio) sums over the paths in the beam: on development speech
    the best path alone had 1 % more of the words wrong. Before that, prior_weight * log_priors is
    subtracted from the units' log-probabilities, as EESEN does (Miao et al. 2015): CTC prefers
    blank wherever it is unsure, and the language model should not pay for that.

    flashlight ends a word at the first frame of its last unit. So the last frame of a word is a
    unit of its own in the tree, see `WordGraph`, and has columns of its own in the emissions: a
    last unit that is held is read to its end, and each path is counted once. A word may begin with
    the unit that ends the one before, without a blank between them: CTC would not have that, but
    speakers say "want to" with one T, and with a blank 3 % more of the words were wrong.

    Frames of likely blank are passed over but for the first of a run, which costs no words
    (recipes/RESULTS.md) and makes the search faster by their share.

    With a `rescorer` the hypotheses of the search get a second score, see `Rescorer`. An utterance
    no word of which is as likely right as `min_confidence` has none: it is taken for noise.
    """

    def __init__(
        self,
        config: DecodeConfig,
        words: SearchProcesses,
        rescorer: Rescorer | None = None,
    ) -> None:
        self._units = len(words.vocabulary.tokenizer.units)
        if len(config.log_priors) not in (0, self._units):
            raise DataError(
                f"decode.log_priors: expected {self._units}, one a unit, got "
                f"{len(config.log_priors)}; `asr tune-lm` estimates them"
            )
        self._log_priors = config.prior_weight * torch.tensor(config.log_priors or 0.0)
        self._separator = separator_of(words.vocabulary.tokenizer)
        self._config = config
        self._words = words
        self._rescorer = rescorer

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """Decode a batch, its utterances one after the other unless there are processes."""
        heard = log_probs.float().cpu()
        found = self.alternatives(heard, lengths)
        if self._rescorer:
            found = self._rescorer(found, self._config)
        return [
            self._unless_noise(with_confidence(best_of(hypotheses), row, self._config.confidence))
            for hypotheses, row in zip(found, heard, strict=True)
        ]

    def _unless_noise(self, said: Hypothesis) -> Hypothesis:
        if max(said.confidence, default=1.0) < self._config.min_confidence:
            return Hypothesis((), (), (), said.score, ())
        return said

    def alternatives(self, log_probs: Tensor, lengths: Tensor) -> list[Alternatives]:
        """What the search finds in each utterance of a batch, best first."""
        log_probs = (log_probs.detach().float().cpu() - self._log_priors).log_softmax(-1)
        utterances = (
            self._columns(utterance[:length])
            for utterance, length in zip(log_probs, lengths.tolist(), strict=True)
        )
        return self._words.map(self._config, utterances)

    def _columns(self, log_probs: Tensor) -> Columns:  # [T', V]
        kept = _informative_frames(log_probs)
        emissions = log_probs[kept]
        frames = kept.tolist()
        if frames and self._separator is not None:
            # Every word begins with a separator, the first one's is put before the utterance.
            certain = torch.full((1, self._units), _NEVER)
            certain[0, self._separator] = 0.0
            emissions = torch.cat([certain, emissions])
            frames = [-1, *frames]
        # Not torch's memory: Python aborts when a thread frees that while it ends.
        return Columns(_with_last_frames(emissions).numpy().copy(), tuple(frames))


def _informative_frames(log_probs: Tensor) -> Tensor:
    """Indices of the frames that are not likely blanks following another, [K] int64."""
    blank = log_probs[:, BLANK] > _SURE_BLANK
    again = blank.clone()
    again[:1] = False
    again[1:] &= blank[:-1]
    return (~again).nonzero()[:, 0]


def _with_last_frames(log_probs: Tensor) -> Tensor:  # [T, V] -> [T, 3 V]
    """Append the units as last frames of a word: alone, and after others of the same unit.

    After others only where the unit was likelier than blank one frame before: no blank may come
    between them, which flashlight would let happen.
    """
    alone = log_probs.clone()
    alone[:, BLANK] = _NEVER
    held = alone.clone()
    held[:1] = _NEVER
    held[1:].masked_fill_(log_probs[:-1] <= log_probs[:-1, BLANK, None], _NEVER)
    return torch.cat([log_probs, alone, held], dim=1)


def build_decoder(
    config: DecodeConfig,
    tokenizer: Tokenizer,
    directory: Path,
    language_model: Path | None = None,
    hotwords: Mapping[str, float] = MappingProxyType({}),
    *,
    words: SearchProcesses | None = None,
) -> Decoder:
    """The decoder that `config` asks for.

    Args:
        config: method, beam and weights.
        tokenizer: the model's.
        directory: model directory with `lm.arpa.gz` or `lm.arpa`, read for beam search, and with
            a recurrent language model where `config` gives it a weight.
        language_model: an ARPA model to use in place of the directory's models.
        hotwords: normalised words and their bonuses, see `load_word_graph`.
        words: `processes_for` the four before, if that has been called already.

    Raises:
        DataError: beam search, and the lexicon or the language model is missing or unreadable.
        ModelError: the recurrent language model is.
    """
    if config.method == "greedy":
        return GreedyDecoder(tokenizer, config.blank_penalty)
    words = words or processes_for(tokenizer, directory, language_model, hotwords)
    words.limit(torch.get_num_threads())  # who made them may not have known: without torch
    second_pass = config.rescore_weight > 0 and language_model is None
    rescorer = load_rescorer(directory) if second_pass else None
    words.check()
    return BeamDecoder(config, words, rescorer)
