"""How likely a recognised word is right, from what the network and the search say of it.

Two things are known of a word: how clearly its units were heard, and how much of the search's
best hypotheses has it at that time. A logistic regression (Platt 1999) on the log-odds of both,
fitted on a development set by `asr tune-lm`, turns them into a probability.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.word_search import Hypothesis

Weights = tuple[float, float, float]  # of both log-odds, and a constant

AS_HEARD: Weights = (1.0, 0.0, 0.0)  # the units' probability itself
_MARGIN = 1e-3  # probabilities are kept so far from 0 and 1
_PENALTY = 0.5  # nats for the squared distance from AS_HEARD: decides where words are few


def confidences(hypothesis: Hypothesis, log_probs: Tensor, weights: Weights) -> list[float]:
    """Of each word, in [0, 1]; `log_probs` [T', V] are the emissions that were searched."""
    sure: list[float] = likelihood(evidence(hypothesis, log_probs), weights).tolist()
    return sure


def with_confidence(hypothesis: Hypothesis, log_probs: Tensor, weights: Weights) -> Hypothesis:
    """The same with how likely each word is right."""
    return replace(hypothesis, confidence=tuple(confidences(hypothesis, log_probs, weights)))


def evidence(hypothesis: Hypothesis, log_probs: Tensor) -> Tensor:
    """[words, 2]: how clearly it was heard, and how much of the best hypotheses has it."""
    heard = list(_heard(hypothesis, log_probs))
    return torch.tensor([heard, hypothesis.agreement or [1.0] * len(heard)]).T


def likelihood(evidence: Tensor, weights: Weights) -> Tensor:
    """How likely words with this evidence [n, 2] are right, [n]."""
    return torch.sigmoid(_log_odds(evidence) @ evidence.new_tensor(weights))


def fit(evidence: Tensor, right: Tensor) -> Weights:
    """Weights that make words with this evidence [n, 2] as likely as they are `right` [n].

    Penalised maximum likelihood; without a word it is AS_HEARD.
    """
    x, y = _log_odds(evidence.double()), right.double()
    prior = x.new_tensor(AS_HEARD)
    weights = prior.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        wrong = F.binary_cross_entropy_with_logits(x @ weights, y, reduction="sum")
        total = wrong + _PENALTY * (weights - prior).square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    first, second, constant = (round(weight, 4) for weight in weights.tolist())
    return first, second, constant


def calibration_error(confidences: Tensor, right: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Naeini 2015): mean of |confidence - share right| over bins."""
    place = (confidences * bins).long().clamp(max=bins - 1)
    difference = confidences.double() - right.double()
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, difference)
    return float(sums.abs().sum() / max(1, len(confidences)))


def _heard(hypothesis: Hypothesis, log_probs: Tensor) -> Iterator[float]:
    """Mean over a word's units of their posterior, highest between one unit and the next."""
    frames = hypothesis.frames
    following = (*frames[1:], len(log_probs))
    for first, end in hypothesis.word_frames:
        peaks = []
        for index in range(bisect_left(frames, first), bisect_left(frames, end)):
            span = slice(frames[index], max(frames[index] + 1, min(following[index], end)))
            peaks.append(float(log_probs[span, hypothesis.tokens[index]].max().exp()))
        yield sum(peaks) / len(peaks) if peaks else 0.0


def _log_odds(evidence: Tensor) -> Tensor:
    """[n, 3]: the log-odds, and 1 for the constant."""
    return torch.cat([evidence.logit(_MARGIN), torch.ones_like(evidence[:, :1])], 1)
