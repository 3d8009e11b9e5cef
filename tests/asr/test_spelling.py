import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import DataError
from asr.lexicon import PHONES, Lexicon
from asr.metrics import error_rate
from asr.spelling import spell


@given(st.text(alphabet=string.ascii_uppercase + string.digits + "'", min_size=1))
def test_every_word_gets_phones(word: str) -> None:
    if word.strip("'"):
        assert spell(word)
        assert set(spell(word)) <= set(PHONES)


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("CAT", "K AE T"),
        ("MAKE", "M EY K"),  # magic e
        ("CITY", "S IH T IY"),  # soft c
        ("GEM", "JH EH M"),  # soft g
        ("NIGHT", "N AY T"),
        ("NATION", "N EY SH AH N"),
        ("DON'T", "D AA N T"),
        ("KNOCKED", "N AA K T"),
        ("B", "B IY"),
        ("BBC", "B IY B IY S IY"),
        ("42", "F AO R T UW"),
        ("4TH", "F AO R T IY EY CH"),
    ],
)
def test_rules(word: str, phones: str) -> None:
    assert " ".join(spell(word)) == phones


@pytest.mark.parametrize("word", ["", "'", "two words", "lower", "CAFÉ", "A-B"])
def test_what_is_no_word_is_refused(word: str) -> None:
    with pytest.raises(DataError, match="expected a word of A-Z"):
        spell(word)


@pytest.mark.skipif("ASR_SHARED_DATA" not in os.environ, reason="ASR_SHARED_DATA is not set")
def test_about_fifteen_percent_of_phones_differ_from_a_real_lexicon() -> None:
    lexicon = Lexicon.read(Path(os.environ["ASR_SHARED_DATA"]) / "speechocean762" / "lexicon.txt")
    words = list(lexicon.words())[::5]
    spelled = [spell(word) for word in words]
    nearest = [
        min(lexicon[word], key=lambda known: error_rate([known], [said]).rate)
        for word, said in zip(words, spelled, strict=True)
    ]
    assert error_rate(nearest, spelled).rate < 0.16
