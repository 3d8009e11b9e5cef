import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.metrics import (
    ErrorRate,
    character_error_rate,
    error_rate,
    right_words,
    word_error_rate,
)

TOKENS = st.lists(st.sampled_from(["a", "b", "c c"]), max_size=6)
PAIRS = st.lists(st.tuples(TOKENS, TOKENS), max_size=4)


def test_counts_of_a_known_alignment() -> None:
    scored = word_error_rate(["THE CAT SAT ON IT"], ["AND THE HAT SAT IT"])
    assert scored == ErrorRate(substitutions=1, deletions=1, insertions=1, reference_length=5)
    assert scored.rate == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "", ErrorRate()),
        ("", "A B", ErrorRate(insertions=2)),
        ("A B C", "", ErrorRate(deletions=3, reference_length=3)),
    ],
)
def test_either_side_may_be_empty(reference: str, hypothesis: str, expected: ErrorRate) -> None:
    assert word_error_rate([reference], [hypothesis]) == expected


def test_rate_without_a_reference_is_the_number_of_insertions() -> None:
    assert word_error_rate([], []).rate == 0
    assert word_error_rate(["", ""], ["A", "B C"]).rate == 3


def test_characters_count_the_space_between_words() -> None:
    assert character_error_rate(["AB CD"], ["ABCD"]) == ErrorRate(deletions=1, reference_length=5)
    assert character_error_rate([" AB  CD "], ["AB CD"]).errors == 0


def test_a_token_may_hold_a_space() -> None:
    assert error_rate([["a b", "c"]], [["a", "b", "c"]]).reference_length == 2


def test_counts_must_match() -> None:
    with pytest.raises(ValueError, match="expected as many hypotheses as references, got 2 and 1"):
        error_rate([["a"]], [["a"], ["b"]])


@given(PAIRS)
def test_laws_of_an_edit_distance(pairs: list[tuple[list[str], list[str]]]) -> None:
    references = [reference for reference, _ in pairs]
    hypotheses = [hypothesis for _, hypothesis in pairs]
    scored = error_rate(references, hypotheses)
    pooled = sum((error_rate([r], [h]) for r, h in pairs), ErrorRate())
    swapped = error_rate(hypotheses, references)

    assert scored == pooled
    assert error_rate(references, references).errors == 0
    assert swapped.errors == scored.errors
    assert (references == hypotheses) == (scored.errors == 0)
    lengths = sum(map(len, hypotheses)) - sum(map(len, references))
    assert scored.insertions - scored.deletions == lengths


def test_right_words() -> None:
    references = ["A B C", "", "D"]
    hypotheses = [["A", "X", "C", "C"], ["Q"], []]
    right = right_words(references, hypotheses)
    assert right[:2] == [True, False]
    assert sum(right[2:4]) == 1  # the reference has one C
    assert right[4:] == [False]
