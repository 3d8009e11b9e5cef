"""Hotwords: in the end, so much for each unit of each occurrence, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.ctc.beam import ctc_beam_search
from kernels.ctc.hotwords import Hotwords

words = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(
    hotwords=st.lists(words, min_size=1, max_size=4), text=st.lists(st.integers(1, 3), max_size=12)
)
def test_occurrences_are_counted(hotwords: list[list[int]], text: list[int]) -> None:
    scorer = Hotwords(hotwords, 4, 0.5)
    state, total = torch.tensor(scorer.start), 0.0
    for unit in text:
        state, score = scorer.step(state, torch.tensor(unit))
        total += score.item()
    total += scorer.finish(state).item()
    expected = sum(
        0.5 * len(word)
        for word in {tuple(word) for word in hotwords}
        for i in range(len(text) - len(word) + 1)
        if tuple(text[i : i + len(word)]) == word
    )
    assert total == pytest.approx(expected)


def test_a_bonus_comes_unit_by_unit_and_is_taken_back() -> None:
    scorer = Hotwords([[1, 2, 3]], 4, 1.0)
    state, scores = torch.tensor(scorer.start), []
    for unit in (1, 2, 1, 2, 3, 3):
        state, score = scorer.step(state, torch.tensor(unit))
        scores.append(score.item())
    assert scores == [1.0, 1.0, -1.0, 1.0, 1.0, 0.0]


def test_a_hotword_is_found_that_was_less_likely() -> None:
    # 1, 1, blank, blank, and 2 or, less likely, 3.
    probabilities = torch.full((5, 1, 4), 0.01)
    probabilities[:2, :, 1] = 0.97
    probabilities[2:4, :, 0] = 0.97
    probabilities[4:, :, 2], probabilities[4:, :, 3] = 0.55, 0.43
    log_probs, lengths = probabilities.log(), torch.tensor([5])
    plain = ctc_beam_search(log_probs, lengths, 8)
    boosted = ctc_beam_search(log_probs, lengths, 8, hotwords=Hotwords([[1, 3]], 4, 1.0))
    assert plain.tokens[0, 0, : plain.lengths[0, 0]].tolist() == [1, 2]
    assert boosted.tokens[0, 0, : boosted.lengths[0, 0]].tolist() == [1, 3]
    assert boosted.scores - boosted.ctc_scores == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [([], "at least one"), ([[1], []], "an empty one"), ([[1, 4]], "from 0 to V - 1 = 3, got 4")],
)
def test_bad_hotwords_are_named(sequences: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Hotwords: .*{message}"):
        Hotwords(sequences, 4, 1.0)
