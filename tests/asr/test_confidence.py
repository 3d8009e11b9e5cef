"""Confidences: what is known of a word, and what share of such words is right."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.confidence import AS_HEARD, calibration_error, confidences, evidence, fit, likelihood
from asr.word_search import Hypothesis, best_of


def test_heard_is_the_mean_of_the_units_peaks() -> None:
    posterior = torch.full((6, 3), 0.1)
    posterior[1, 1], posterior[2, 1], posterior[4, 2] = 0.5, 0.7, 0.3
    posterior[5, 2] = 0.9  # after the word's end
    said = Hypothesis(("W",), (1, 2), (1, 4), 0.0, ((1, 5),), agreement=(0.25,))
    assert evidence(said, posterior.log()).tolist() == [[pytest.approx(0.5), 0.25]]
    assert confidences(said, posterior.log(), AS_HEARD) == [pytest.approx(0.5)]


def test_heard_counts_the_units_that_begin_inside() -> None:
    posterior = torch.full((8, 2), 0.1)
    posterior[1, 1], posterior[4, 1], posterior[6, 1] = 0.4, 0.6, 0.9
    spans = ((0, 2), (3, 5), (5, 6), (6, 8))  # nothing begins in the third
    said = Hypothesis(("A", "B", "C", "D"), (1, 1, 1), (1, 4, 6), 0.0, spans)
    heard = evidence(said, posterior.log())[:, 0]
    assert heard.tolist() == pytest.approx([0.4, 0.6, 0.0, 0.9])


@st.composite
def said(draw: st.DrawFn) -> Hypothesis:
    """Words one after the other, with gaps."""
    bounds = sorted(draw(st.sets(st.integers(0, 12), max_size=8)))
    spans = tuple(zip(bounds[::2], bounds[1::2], strict=False))
    words = tuple(draw(st.sampled_from("AB")) for _ in spans)
    return Hypothesis(words, (), (), draw(st.floats(-2, 0)), spans)


@given(st.lists(said(), min_size=1, max_size=4))
def test_agreement_is_of_those_with_the_word_at_that_time(found: list[Hypothesis]) -> None:
    likely = [math.exp(one.score) for one in found]
    best = best_of(tuple(found))
    for word, span, share in zip(best.words, best.word_frames, best.agreement, strict=True):
        having = [
            any(
                word == other and set(range(*span)) & set(range(*there))
                for other, there in zip(one.words, one.word_frames, strict=True)
            )
            for one in found
        ]
        expected = sum(p for p, has in zip(likely, having, strict=True) if has) / sum(likely)
        assert share == pytest.approx(expected)


def test_no_words() -> None:
    nothing = Hypothesis((), (), (), 0.0, ())
    assert confidences(nothing, torch.zeros(4, 3), AS_HEARD) == []
    assert fit(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)) == AS_HEARD
    assert calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) == 0.0


def test_fit_finds_the_shares_that_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(20000, 2, generator=generator)
    truth = (0.5, 0.3, -0.7)
    right = torch.rand(20000, generator=generator) < likelihood(known, truth)
    weights = fit(known, right)
    assert weights == pytest.approx(truth, abs=0.1)  # five times the error that theory expects
    sure = likelihood(known, weights)
    assert calibration_error(sure, right) < 0.02 < calibration_error(known[:, 0], right)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=12))
def test_fit_of_a_few_words_stays_sane(words: list[tuple[float, float, bool]]) -> None:
    known = torch.tensor([word[:2] for word in words]).reshape(-1, 2)
    weights = fit(known, torch.tensor([word[2] for word in words], dtype=torch.bool))
    sure = likelihood(torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]), weights)
    assert ((sure >= 0) & (sure <= 1)).all()
    assert max(map(abs, weights)) < 20


def test_calibration_error_by_hand() -> None:
    sure = torch.tensor([0.95, 0.95, 0.15, 1.0])
    right = torch.tensor([True, False, False, True])
    # The last tenth holds 2.9 where 2 are right, the second one 0.15 where none is.
    assert calibration_error(sure, right) == pytest.approx((0.9 + 0.15) / 4)
