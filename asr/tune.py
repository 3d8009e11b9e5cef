"""Pick the weights of the beam search on a development set."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asr.audio import read_audio
from asr.config import DecodeConfig, dump_config
from asr.data import Utterance
from asr.decode import BeamDecoder
from asr.errors import DataError
from asr.files import write_text
from asr.lexicon import Lexicon
from asr.metrics import ErrorRate, word_error_rate
from asr.model_dir import Packaged
from asr.word_graph import WordGraph, find_language_model, load_word_graph

_Weights = tuple[float, float]  # lm_weight, word_score

_LM_WEIGHTS = (0.5, 1.5, 2.5, 3.5)
_WORD_SCORES = (-2.0, 0.0, 2.0)
_STEPS: tuple[_Weights, ...] = ((0.5, 1.0), (0.25, 0.5))  # around the best, one after the other


@dataclass(frozen=True)
class Trial:
    """Word errors of the development set at one pair of weights."""

    lm_weight: float
    word_score: float
    score: ErrorRate


@dataclass(frozen=True)
class Tuning:
    """What `tune_lm` tried, best first."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the fewest word errors."""
        return self.trials[0]

    def summary(self, rows: int = 10) -> str:
        """The best `rows` trials, a line each."""
        return "\n".join(
            f"lm_weight {trial.lm_weight:5.2f}  word_score {trial.word_score:5.2f}  "
            f"WER {100 * trial.score.rate:6.2f} %  ({trial.score.errors} of "
            f"{trial.score.reference_length})"
            for trial in self.trials[:rows]
        )


def tune_lm(
    packaged: Packaged,
    utterances: Sequence[Utterance],
    *,
    language_model: Path | None = None,
    lexicon: Path | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tuning:
    """Search lm_weight and word_score for the fewest word errors, coarsely and then finely.

    The network runs once over the utterances; each pair of weights only repeats the search. Of
    equal pairs the one nearest to no word score, then to no language model, is better.

    Args:
        packaged: the model; its beam stays as configured.
        utterances: development set with transcripts. Not a test set: its score would lie.
        language_model: an ARPA model in place of the one in the model directory.
        lexicon: a lexicon in place of a phoneme model's own.
        on_progress: called with the number of utterances heard, then of pairs of weights tried.

    Raises:
        DataError: no utterances, or the lexicon or the language model is missing or wrong.
        AudioError: a recording cannot be read.
    """
    if not utterances:
        raise DataError("tune_lm: expected at least one utterance, got none")
    graph = load_word_graph(
        packaged.tokenizer,
        language_model or find_language_model(packaged.directory),
        Lexicon.read(lexicon) if lexicon else None,
    )
    emissions = []
    for done, utterance in enumerate(utterances, 1):
        emissions.append(_emissions(packaged, utterance))
        on_progress(done)
    references = [utterance.text for utterance in utterances]
    return search(packaged.config.decode, graph, emissions, references, on_progress)


def _emissions(packaged: Packaged, utterance: Utterance) -> Tensor:  # [1, T', V]
    waveform = read_audio(utterance.audio, packaged.config.features.sample_rate)
    log_probs, _ = packaged.emissions(waveform[None], torch.tensor([len(waveform)]))
    return log_probs.cpu()


def search(
    config: DecodeConfig,
    graph: WordGraph,
    emissions: Sequence[Tensor],  # [1, T', V] each
    references: Sequence[str],
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tuning:
    """`tune_lm` over emissions that are there already."""
    scores: dict[_Weights, ErrorRate] = {}

    def rank(weights: _Weights) -> tuple[int, float, float]:
        return scores[weights].errors, abs(weights[1]), weights[0]

    def measure(candidates: Iterable[_Weights]) -> _Weights:
        for weights in candidates:
            if weights not in scores:
                scores[weights] = _score(config, graph, weights, emissions, references)
                on_progress(len(scores))
        return min(scores, key=rank)

    best = measure((lm, word) for lm in _LM_WEIGHTS for word in _WORD_SCORES)
    for lm_step, word_step in _STEPS:
        while True:  # the best may lie outside of what was tried
            center = best
            best = measure(
                (max(0.0, center[0] + i * lm_step), center[1] + j * word_step)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            )
            if best == center:
                break
    return Tuning(tuple(Trial(*weights, scores[weights]) for weights in sorted(scores, key=rank)))


def _score(
    config: DecodeConfig,
    graph: WordGraph,
    weights: _Weights,
    emissions: Sequence[Tensor],
    references: Sequence[str],
) -> ErrorRate:
    decoder = BeamDecoder(_with_weights(config, weights), graph)
    hypotheses = [
        " ".join(decoder(log_probs, torch.tensor([log_probs.shape[1]]))[0].words)
        for log_probs in emissions
    ]
    return word_error_rate(references, hypotheses)


def _with_weights(config: DecodeConfig, weights: _Weights) -> DecodeConfig:
    lm_weight, word_score = weights
    return config.model_copy(
        update={"method": "beam", "lm_weight": lm_weight, "word_score": word_score}
    )


def save_weights(packaged: Packaged, trial: Trial) -> None:
    """Write the weights, and beam search as the method, into the model's `config.toml`."""
    decode = _with_weights(packaged.config.decode, (trial.lm_weight, trial.word_score))
    config = packaged.config.model_copy(update={"decode": decode})
    write_text(packaged.directory / "config.toml", dump_config(config))
