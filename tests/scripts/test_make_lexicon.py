# ruff: noqa: RUF001 -- phonetic letters look like others on purpose

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import DataError
from asr.lexicon import PHONES, Lexicon

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_lexicon.py"
_spec = importlib.util.spec_from_file_location("make_lexicon", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
make_lexicon = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_lexicon)

needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is missing")


def test_every_phoneme_becomes_arpabet() -> None:
    said = {phone for phones in make_lexicon.ARPABET.values() for phone in phones.split()}
    assert said == set(PHONES)
    common = {phone for each in make_lexicon.COMMON.values() for p in each for phone in p.split()}
    assert common <= set(PHONES)


@pytest.mark.parametrize(
    ("ipa", "word", "phones"),
    [
        ("b_ˈʌ_ɾ_ɚ", "BUTTER", "B AH T ER"),
        ("b_ˈʌ_ʔ_n̩", "BUTTON", "B AH T AH N"),
        ("n_ˈɔːɹ_θ", "NORTH", "N AO R TH"),
        ("d_ˌʌ_b_əl_j_ˌuː b_ˈiː", "WB", "D AH B AH L Y UW B IY"),
        ("ɚ_ɹ_ˈaʊ_n_d", "AROUND", "AH R AW N D"),
        ("m_ˈɛ_m_ɚ_ɹ_i", "MEMORY", "M EH M ER IY"),
        ("ɹ_ˌoʊ_m_ə_n s_ˈɪ_k_s", "VI", "S IH K S"),
        ("ɹ_ˈoʊ_m_ə_n", "ROMAN", "R OW M AH N"),
        ("k_k_ˈæ_t", "KKAT", "K AE T"),
    ],
)
def test_ipa_becomes_arpabet(ipa: str, word: str, phones: str) -> None:
    assert " ".join(make_lexicon.to_arpabet(ipa, word)) == phones


def test_a_phoneme_that_is_not_english_is_named() -> None:
    with pytest.raises(DataError, match="YÜ: expected a phoneme of English, got 'y'"):
        make_lexicon.to_arpabet("j_y", "YÜ")


def test_vocabulary_may_have_counts_and_case(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("the 20\nThe\n\n3rd 4\n'TIS 2\n'\ncat\ndog 1\n")
    assert make_lexicon.read_vocabulary(path) == ["THE", "'TIS", "CAT", "DOG"]
    assert make_lexicon.read_vocabulary(path, 2) == ["THE", "'TIS"]
    with pytest.raises(DataError, match="absent: cannot read"):
        make_lexicon.read_vocabulary(tmp_path / "absent")


strings = st.text(alphabet="ab", max_size=6)


@given(strings, strings, strings)
def test_distance_is_a_metric(a: str, b: str, c: str) -> None:
    distance = make_lexicon.distance
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


def make(folder: Path, *options: str) -> Lexicon:
    (folder / "words").write_text("water\nbutter\nof\nvi\nit's\n")
    (folder / "base").write_text("WATER\tW AO1 T AH0\nWATER\tW AO1 T ER0\nBUTTER\tB AH1 T AH0\n")
    out = folder / "out"
    command = [sys.executable, str(SCRIPT), "--vocabulary", str(folder / "words")]
    command += ["--base", str(folder / "base"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "5 words; espeak-ng and the base differ in 12.5% of the phones of 2 words" in done.stdout
    return Lexicon.read(out)


@needs_espeak
@pytest.mark.parametrize("first", ["base", "espeak"])
def test_words_keep_their_pronunciations_of_the_base(tmp_path: Path, first: str) -> None:
    lexicon = make(tmp_path, "--first", first)
    assert list(lexicon.words()) == ["BUTTER", "IT'S", "OF", "VI", "WATER"]
    # the nearest to espeak-ng's, which is its own here, before the other one
    assert lexicon["WATER"] == [("W", "AO", "T", "ER"), ("W", "AO", "T", "AH")]
    butter = [("B", "AH", "T", "AH"), ("B", "AH", "T", "ER")]
    assert lexicon["BUTTER"] == (butter if first == "base" else butter[::-1])
    assert lexicon["IT'S"] == [("IH", "T", "S")]
    assert lexicon["OF"] == [("AH", "V"), ("AH",)]
    assert lexicon["VI"] == [("S", "IH", "K", "S")]


@needs_espeak
def test_each_word_is_read_alone() -> None:
    words = ["THE", "A", "MISTER", "U", "S", "NOT", "TO", "NOT"]
    together = list(make_lexicon.espeak(words))
    assert together == [
        pronunciation for word in words for pronunciation in make_lexicon.espeak([word])
    ]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--vocabulary", str(tmp_path / "absent")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("make_lexicon: ")
    assert len(done.stderr.splitlines()) == 1
