"""Confidences: what is known of a word, and what share of such words is right."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.confidence import AS_HEARD, calibration_error, confidences, evidence, fit, likelihood
from asr.word_search import Hypothesis


def test_heard_is_the_mean_of_the_units_peaks() -> None:
    posterior = torch.full((6, 3), 0.1)
    posterior[1, 1], posterior[2, 1], posterior[4, 2] = 0.5, 0.7, 0.3
    posterior[5, 2] = 0.9  # after the word's end
    said = Hypothesis(("W",), (1, 2), (1, 4), 0.0, ((1, 5),), agreement=(0.25,))
    assert evidence(said, posterior.log()).tolist() == [[pytest.approx(0.5), 0.25]]
    assert confidences(said, posterior.log(), AS_HEARD) == [pytest.approx(0.5)]


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
