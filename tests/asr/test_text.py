# ruff: noqa: RUF001 -- letters that look like others are what is tested

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.text import foreign_letters, normalize

ALLOWED = set(string.ascii_uppercase + string.digits + "' ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", "HELLO WORLD"),
        ("It’s  o`clock ‘tis", "IT'S O'CLOCK 'TIS"),
        ("twenty-one—café naïve", "TWENTY ONE CAFE NAIVE"),
        ("ﬁne ﬂat ſo １２ ß", "FINE FLAT SO 12 SS"),
        ("he said ' no '", "HE SAID NO"),
        ("the dogs' 3rd", "THE DOGS' 3RD"),
        ("Mor\u00adning\u200dson \ufeffa\u2060n\ufe0f zero\u200bwidth", "MORNINGSON AN ZERO WIDTH"),
        ("\u0149 a", "'N A"),
        ("", ""),
        (" \t\n…", ""),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(st.text())
def test_only_allowed_characters_and_single_spaces(text: str) -> None:
    done = normalize(text)
    assert set(done) <= ALLOWED
    assert done == " ".join(done.split())
    assert normalize(done) == done


@given(st.text(alphabet=sorted(ALLOWED)), st.text(alphabet=sorted(ALLOWED)))
def test_words_are_normalized_one_by_one(left: str, right: str) -> None:
    both = f"{normalize(left)} {normalize(right)}".strip()
    assert normalize(f"{left} {right}") == both


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("Café, 12 ½ $ & naïve — ‘ß’!", ""),
        ("çe 42 $ привет", "ПРИВЕТ"),
        ("encyclopædia", "Æ"),
        ("好 好 ٣", "好٣"),
    ],
)
def test_foreign_letters(text: str, letters: str) -> None:
    assert foreign_letters(text) == letters
