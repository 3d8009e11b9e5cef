"""Fit a model's decoding to a development set: weights of the search, priors, confidences."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.audio import read_blocks
from asr.confidence import (
    Weights,
    calibration_error,
    evidence,
    fit,
    likelihood,
    with_confidence,
)
from asr.config import DecodeConfig, dump_config
from asr.data import Utterance
from asr.decode import BeamDecoder, greedy_decode
from asr.errors import DataError
from asr.files import write_text
from asr.metrics import ErrorRate, error_rate, right_words, word_error_rate
from asr.model_dir import Packaged
from asr.rescoring import Rescorer, has_rescorer, load_rescorer, second_score
from asr.search_processes import processes_for
from asr.segment import segments
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.word_graph import find_language_model
from asr.word_search import Alternatives, Hypothesis, best_of

_Build = Callable[[DecodeConfig], BeamDecoder]
_Weights = tuple[float, float, float]  # lm_weight, word_score, prior_weight

_LM_WEIGHTS = (0.5, 1.5, 2.5, 3.5)
_WORD_SCORES = (-2.0, 0.0, 2.0)
_PRIOR_WEIGHTS = (0.0, 0.5)
# Around the best; the finer steps after the coarser ones.
_STEPS: tuple[_Weights, ...] = ((0.5, 1.0, 0.25), (0.25, 0.5, 0.125))
_BLANK_PENALTIES = tuple(twentieths / 20 for twentieths in range(41))
_RESCORE_WEIGHTS = tuple(tenths / 10 for tenths in range(11))
_RESCORE_NGRAMS = tuple(quarters / 4 for quarters in range(5))
_RESCORE_WORD_SCORES = tuple(halves / 2 for halves in range(-3, 4))
_MIN_CONFIDENCES = tuple(twentieths / 20 for twentieths in range(11))
_BATCH = 64  # utterances of like length that are searched at once


@dataclass(frozen=True)
class Trial:
    """Word errors of the development set with one choice of weights."""

    decode: DecodeConfig
    score: ErrorRate


@dataclass(frozen=True)
class Tuning:
    """What `tune_lm` tried, best first; only the first has the weights of confidences."""

    trials: tuple[Trial, ...]
    second_pass: ErrorRate | None  # of the best weights with those of the second pass, if any
    calibration_error: float  # of the confidences, on the speech that they were fitted to

    @property
    def best(self) -> Trial:
        """The trial with the fewest word errors."""
        return self.trials[0]

    def summary(self, rows: int = 10) -> str:
        """The best `rows` trials, a line each, and how far the confidences are off."""
        trials = "\n".join(
            f"lm_weight {trial.decode.lm_weight:5.2f}  "
            f"word_score {trial.decode.word_score:5.2f}  "
            f"prior_weight {trial.decode.prior_weight:5.3f}  "
            f"WER {100 * trial.score.rate:6.2f} %  ({trial.score.errors} of "
            f"{trial.score.reference_length})"
            for trial in self.trials[:rows]
        )
        second = ""
        if self.second_pass:
            decode = self.best.decode
            second = (
                f"second pass: rescore_weight {decode.rescore_weight:.2f}  "
                f"rescore_ngram {decode.rescore_ngram:.2f}  "
                f"rescore_word_score {decode.rescore_word_score:.2f}  "
                f"WER {100 * self.second_pass.rate:.2f} %\n"
            )
        return (
            f"{trials}\n"
            f"{second}"
            f"greedy path: blank_penalty {self.best.decode.blank_penalty:.2f}\n"
            f"confidences: calibration error {self.calibration_error:.3f}\n"
            f"noise: min_confidence {self.best.decode.min_confidence:.2f}"
        )


def tune_lm(
    packaged: Packaged,
    utterances: Sequence[Utterance],
    *,
    language_model: Path | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tuning:
    """Search the weights for the fewest word errors: the present ones, a coarse grid, finer steps.

    The network runs once over the utterances; each choice of weights only repeats the search. Of
    equal choices the one nearest to no priors, no word score, no language model is better. The
    priors are the mean of the emissions. The blank's penalty is the one that leaves the greedy path
    the fewest errors, which the search has no part in. If the model has a recurrent language model,
    the weights of its pass over what the search then finds follow. Last come the confidences, and
    the least of them that tells speech from noise.

    Args:
        packaged: the model; its beam stays as configured.
        utterances: development set with transcripts. Not a test set: its score would lie.
        language_model: an ARPA model in place of those in the model directory.
        on_progress: called with the number of utterances heard, then of choices tried.

    Raises:
        DataError: no utterances, no speech in them, no word that is ever right, or the lexicon or
            the language model is missing or wrong.
        AudioError: a recording cannot be read.
    """
    if not utterances:
        raise DataError("tune_lm: expected at least one utterance, got none")
    if not any(utterance.text.split() for utterance in utterances):
        raise DataError("tune_lm: expected transcripts with words, got none")
    words = processes_for(packaged.tokenizer, packaged.directory, language_model)
    words.check()
    emissions = []
    for done, utterance in enumerate(utterances, 1):
        emissions.append(_emissions(packaged, utterance))
        on_progress(done)
    if not any(log_probs.shape[1] for log_probs in emissions):
        raise DataError("tune_lm: expected speech, got recordings of noise or silence only")
    references = [utterance.text for utterance in utterances]
    build = partial(BeamDecoder, words=words)
    penalty = fit_blank_penalty(packaged.tokenizer, emissions, references)
    config = packaged.config.decode.model_copy(update={"blank_penalty": penalty})
    second_pass = language_model is None and has_rescorer(packaged.directory)
    rescorer = load_rescorer(packaged.directory) if second_pass else None
    return search(config, build, emissions, references, rescorer, on_progress)


def _emissions(packaged: Packaged, utterance: Utterance) -> Tensor:  # [1, T', V]
    rate = packaged.config.features.sample_rate
    parts = []
    for _, waveform in segments(read_blocks(utterance.audio, rate), rate):
        log_probs, lengths = packaged.emissions(waveform[None], torch.tensor([len(waveform)]))
        parts.append(log_probs[:, : int(lengths)].cpu())  # nothing of what is no speech
    return torch.cat(parts, 1)


def fit_blank_penalty(
    tokenizer: Tokenizer,
    emissions: Sequence[Tensor],  # [1, T', V] each
    references: Sequence[str],
) -> float:
    """Multiple of 0.05 with which the greedy path makes the fewest errors, in phones or words.

    References that the tokenizer has no units for are left out.
    """
    heard: list[Tensor] = []
    said: list[list[str]] = []
    for log_probs, reference in zip(emissions, references, strict=True):
        with suppress(DataError):
            said.append(tokenizer.decode(tokenizer.encode(normalize(reference))).split())
            heard.append(log_probs)

    def errors(penalty: float) -> int:
        paths = [
            greedy_decode(log_probs, torch.tensor([log_probs.shape[1]]), penalty)[0]
            for log_probs in heard
        ]
        read = [tokenizer.decode([unit for unit, _, _ in path]).split() for path in paths]
        return error_rate(said, read).errors

    return min(_BLANK_PENALTIES, key=errors)


def search(
    config: DecodeConfig,
    build: _Build,
    emissions: Sequence[Tensor],  # [1, T', V] each
    references: Sequence[str],
    rescorer: Rescorer | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tuning:
    """`tune_lm` over emissions that are there already, with decoders by `build`."""
    scores: dict[_Weights, ErrorRate] = {}
    priors = torch.cat([log_probs[0] for log_probs in emissions]).exp().mean(0)
    log_priors = tuple(round(value, 4) for value in priors.clamp(min=1e-6).log().tolist())
    config = config.model_copy(update={"method": "beam", "log_priors": log_priors})

    def rank(weights: _Weights) -> tuple[float, ...]:
        return scores[weights].errors, weights[2], abs(weights[1]), weights[0]

    def measure(candidates: Iterable[_Weights]) -> _Weights:
        for weights in candidates:
            if weights not in scores:
                decode = _with_weights(config, weights)
                scores[weights] = _score(decode, build, emissions, references)
                on_progress(len(scores))
        return min(scores, key=rank)

    present = config.lm_weight, config.word_score, config.prior_weight
    best = measure([present, *itertools.product(_LM_WEIGHTS, _WORD_SCORES, _PRIOR_WEIGHTS)])
    for step in _STEPS:
        while True:  # the best may lie outside of what was tried
            center = best
            best = measure(_neighbours(center, step))
            if best == center:
                break
    if not any(score.hits for score in scores.values()):
        raise DataError(
            f"tune_lm: no weights make any of {scores[best].reference_length} words right; are the "
            "transcripts those of the recordings?"
        )
    trials = [
        Trial(_with_weights(config, weights), scores[weights])
        for weights in sorted(scores, key=rank)
    ]
    decode, second_pass = trials[0].decode, None
    found = _alternatives(decode, build, emissions)
    if rescorer:
        log_probs = rescorer.log_probs(found)
        decode, second_pass = fit_second_pass(decode, found, log_probs, references)
        found = rescorer(found, decode)
    hypotheses = [best_of(alternatives) for alternatives in found]
    weights, error = _calibrate(hypotheses, emissions, references)
    hypotheses = [
        with_confidence(said, heard[0], weights)
        for said, heard in zip(hypotheses, emissions, strict=True)
    ]
    least = fit_min_confidence(hypotheses, references)
    fitted = {"confidence": weights, "min_confidence": least}
    trials[0] = replace(trials[0], decode=decode.model_copy(update=fitted))
    return Tuning(tuple(trials), second_pass, error)


def fit_second_pass(
    config: DecodeConfig,
    found: Sequence[Alternatives],
    log_probs: Sequence[Sequence[float]],  # of each hypothesis, by a `Rescorer`
    references: Sequence[str],
) -> tuple[DecodeConfig, ErrorRate]:
    """Weights of the second pass with the fewest word errors, of equal ones the least."""
    errors = [
        [word_error_rate([reference], [" ".join(said.words)]) for said in hypotheses]
        for reference, hypotheses in zip(references, found, strict=True)
    ]
    utterances = [
        list(zip(*utterance, strict=True))
        for utterance in zip(found, log_probs, errors, strict=True)
    ]

    def score(decode: DecodeConfig) -> ErrorRate:
        picked = (
            max(utterance, key=lambda entry: second_score(entry[0], entry[1], decode))[2]
            for utterance in utterances
        )
        return sum(picked, ErrorRate())

    names = ("rescore_weight", "rescore_ngram", "rescore_word_score")
    choices = [
        config.model_copy(update=dict(zip(names, weights, strict=True)))
        for weights in itertools.product(_RESCORE_WEIGHTS, _RESCORE_NGRAMS, _RESCORE_WORD_SCORES)
    ]
    scores = [(score(decode), decode) for decode in choices]
    best, decode = min(
        scores,
        key=lambda entry: (
            entry[0].errors,
            entry[1].rescore_weight,
            abs(entry[1].rescore_word_score),
            -entry[1].rescore_ngram,
        ),
    )
    return decode, best


def fit_min_confidence(hypotheses: Sequence[Hypothesis], references: Sequence[str]) -> float:
    """Least confidence of an utterance's surest word that speech can do with.

    The highest of `_MIN_CONFIDENCES` with which there are no more word errors than without. Noise
    has words, too, but rarely one that is likely right.
    """

    def errors(least: float) -> int:
        kept = (max(said.confidence, default=0.0) >= least for said in hypotheses)
        texts = [
            " ".join(said.words) if keep else ""
            for said, keep in zip(hypotheses, kept, strict=True)
        ]
        return word_error_rate(references, texts).errors

    return max(least for least in _MIN_CONFIDENCES if errors(least) <= errors(0.0))


def _calibrate(
    hypotheses: Sequence[Hypothesis], emissions: Sequence[Tensor], references: Sequence[str]
) -> tuple[Weights, float]:
    """Weights of the confidences, and the calibration error that they leave."""
    known = torch.cat(
        [evidence(said, heard[0]) for said, heard in zip(hypotheses, emissions, strict=True)]
    )
    right = torch.tensor(right_words(references, [said.words for said in hypotheses]))
    weights = fit(known, right)
    return weights, calibration_error(likelihood(known, weights), right)


def _neighbours(center: _Weights, step: _Weights) -> Iterator[_Weights]:
    """`center` with one weight a step down or up, or the first two, as one makes up for the other.

    Only word scores may be negative.
    """
    for moves in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)):
        for sign in (-1, 1):
            lm_weight, word_score, prior_weight = (
                weight + sign * move * size
                for weight, move, size in zip(center, moves, step, strict=True)
            )
            yield max(0.0, lm_weight), word_score, max(0.0, prior_weight)


def _with_weights(config: DecodeConfig, weights: _Weights) -> DecodeConfig:
    names = ("lm_weight", "word_score", "prior_weight")
    return config.model_copy(update=dict(zip(names, weights, strict=True)))


def _score(
    config: DecodeConfig,
    build: _Build,
    emissions: Sequence[Tensor],
    references: Sequence[str],
) -> ErrorRate:
    found = _alternatives(config, build, emissions)
    return word_error_rate(references, [" ".join(best.words) for best, *_ in found])


def _alternatives(
    config: DecodeConfig, build: _Build, emissions: Sequence[Tensor]
) -> list[Alternatives]:
    decoder = build(config)
    lengths = torch.tensor([log_probs.shape[1] for log_probs in emissions])
    found: dict[int, Alternatives] = {}
    for rows in lengths.argsort().split(_BATCH):
        batch = pad_sequence([emissions[row][0] for row in rows], batch_first=True)
        found |= zip(rows.tolist(), decoder.alternatives(batch, lengths[rows]), strict=True)
    return [found[row] for row in range(len(emissions))]


def save_weights(packaged: Packaged, trial: Trial) -> None:
    """Write the weights into the model's `config.toml`.

    With them goes beam search as the method, if the directory has a language model to search with.
    """
    decode = trial.decode
    try:
        find_language_model(packaged.directory)
    except DataError:  # another one was given; who gives it again gets beam search without asking
        decode = decode.model_copy(update={"method": packaged.config.decode.method})
    config = packaged.config.model_copy(update={"decode": decode})
    write_text(packaged.directory / "config.toml", dump_config(config))
