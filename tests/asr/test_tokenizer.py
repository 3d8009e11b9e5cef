import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asr.tokenizer
from asr.config import UnitConfig
from asr.errors import DataError, ModelError
from asr.lexicon import PHONES, Lexicon
from asr.text import normalize
from asr.tokenizer import (
    CharacterTokenizer,
    PhonemeTokenizer,
    SubwordTokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)

TEXTS = ["THE CAT SAT ON THE MAT", "IT'S THE CAT'S MAT", "TEN CATS SAT"] * 10
LEXICON = "THE\tDH AH\nTHE\tDH IY\nCAT\tK AE T\n"
texts = st.text(alphabet=string.ascii_uppercase + string.digits + "' ").map(normalize)
KINDS = ("phoneme", "subword", "character")


@pytest.fixture(scope="module")
def subwords() -> SubwordTokenizer:
    return SubwordTokenizer.train(TEXTS, 60)


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], tuple[UnitConfig, Tokenizer]]:
    (tmp_path / "given.txt").write_text(LEXICON)

    def of_kind(kind: str) -> tuple[UnitConfig, Tokenizer]:
        lexicon = str(tmp_path / "given.txt")
        units = UnitConfig.model_validate({"kind": kind, "vocab_size": 60, "lexicon": lexicon})
        return units, build_tokenizer(units, TEXTS)

    return of_kind


@given(text=texts)
def test_characters_are_lossless(text: str) -> None:
    tokenizer = CharacterTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text)


@given(text=texts)
def test_subwords_are_lossless(subwords: SubwordTokenizer, text: str) -> None:
    ids = subwords.encode(text)
    assert subwords.decode(ids) == text
    assert all(0 < index < len(subwords.units) for index in ids)
    assert subwords.units.index("<unk>") not in ids


@given(text=texts)
def test_phonemes_are_lossless(text: str) -> None:
    tokenizer = PhonemeTokenizer(Lexicon([("A", ["EY"]), ("A", ["AH"])]))
    phones = [phone for word in text.split() for phone in tokenizer.pronounce(word)]
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert tokenizer.decode(ids).split() == phones


def test_phonemes_take_the_first_pronunciation_and_name_unknown_words() -> None:
    tokenizer = PhonemeTokenizer(Lexicon([("THE", ["DH", "AH"]), ("THE", ["DH", "IY"])]))
    assert tokenizer.units == ("<blk>", *PHONES)
    assert tokenizer.decode(tokenizer.encode("THE CAT THE 2")) == "DH AH K AE T DH AH T UW"
    assert tokenizer.out_of_vocabulary == {"CAT": ("K", "AE", "T"), "2": ("T", "UW")}


def test_a_lexicon_with_other_phones_is_refused() -> None:
    with pytest.raises(DataError, match="got XX; map them"):
        PhonemeTokenizer(Lexicon([("A", ["XX"])]))


def test_training_subwords_is_deterministic_and_quiet(
    subwords: SubwordTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = SubwordTokenizer.train(TEXTS, 60)
    assert capfd.readouterr() == ("", "")
    for name, tokenizer in (("one", subwords), ("two", again)):
        tokenizer.save(tmp_path / name)
    model = (tmp_path / "one" / "subwords.model").read_bytes()
    assert model == (tmp_path / "two" / "subwords.model").read_bytes()


def test_subwords_number_at_most_what_was_asked(subwords: SubwordTokenizer) -> None:
    assert subwords.units[0] == "<blk>"
    assert len(subwords.units) <= 60
    assert len(SubwordTokenizer.train(TEXTS, 42).units) == 42
    assert len(subwords.encode("THE CAT")) < len("THE CAT")


def test_an_unknown_piece_says_nothing(subwords: SubwordTokenizer) -> None:
    ids = [*subwords.encode("THE"), subwords.units.index("<unk>"), *subwords.encode("CAT")]
    assert subwords.decode(ids) == "THE CAT"


def test_subwords_that_cannot_be_trained_say_why() -> None:
    with pytest.raises(DataError, match=r"cannot train 60 subwords on 0 texts: .+"):
        SubwordTokenizer.train([], 60)
    with pytest.raises(DataError, match=r"expected a vocab_size of at least 40, .* got 39"):
        SubwordTokenizer.train(["HELLO WORLD"], 39)
    assert len(SubwordTokenizer.train(["HELLO WORLD"], 40).units) == 40


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_not_normalized_is_refused(
    build: Callable[[str], tuple[UnitConfig, Tokenizer]], kind: str
) -> None:
    _, tokenizer = build(kind)
    with pytest.raises(DataError, match="expected normalized text, got 'The cat'"):
        tokenizer.encode("The cat")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(
    build: Callable[[str], tuple[UnitConfig, Tokenizer]], kind: str, tmp_path: Path
) -> None:
    units, tokenizer = build(kind)
    tokenizer.save(tmp_path / "model")
    loaded = load_tokenizer(units, tmp_path / "model")
    assert type(loaded) is type(tokenizer)
    assert loaded.units == tokenizer.units
    assert loaded.encode("THE CAT 7") == tokenizer.encode("THE CAT 7")
    lines = (tmp_path / "model" / "tokens.txt").read_text().splitlines()
    assert tuple(lines) == tokenizer.units


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_foreign_file_is_named(
    build: Callable[[str], tuple[UnitConfig, Tokenizer]], kind: str, tmp_path: Path
) -> None:
    units, tokenizer = build(kind)
    directory = tmp_path / "model"
    tokenizer.save(directory)
    (directory / "tokens.txt").write_text("<blk>\nA\n")
    with pytest.raises(ModelError, match=r"tokens\.txt: expected the \d+ .* units"):
        load_tokenizer(units, directory)
    for path in directory.iterdir():
        tokenizer.save(directory)
        path.unlink()
        with pytest.raises(ModelError, match=path.name):
            load_tokenizer(units, directory)


def test_damaged_subwords_are_a_model_error(tmp_path: Path, subwords: SubwordTokenizer) -> None:
    subwords.save(tmp_path)
    (tmp_path / "subwords.model").write_bytes(b"\x00damaged")
    units = UnitConfig.model_validate({"kind": "subword"})
    with pytest.raises(ModelError, match="expected a sentencepiece model"):
        load_tokenizer(units, tmp_path)


def test_without_a_path_the_packaged_lexicon_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = Path(asr.tokenizer.__file__).parent / "models" / "english" / "lexicon.txt"
    assert packaged == asr.tokenizer.PACKAGED_LEXICON
    (tmp_path / "mine.txt").write_text("CAT\tD AO G\n")
    monkeypatch.setattr(asr.tokenizer, "PACKAGED_LEXICON", tmp_path / "mine.txt")
    tokenizer = build_tokenizer(UnitConfig.model_validate({"kind": "phoneme"}), [])
    assert tokenizer.decode(tokenizer.encode("CAT")) == "D AO G"
