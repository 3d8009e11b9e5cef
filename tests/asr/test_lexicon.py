from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import DataError
from asr.lexicon import PHONES, Lexicon

words = st.text(alphabet="ABCXYZ'", min_size=1, max_size=4)
pronunciations = st.lists(st.sampled_from(PHONES), min_size=1, max_size=5).map(tuple)
entries = st.lists(st.tuples(words, pronunciations), min_size=1)


def content(lexicon: Lexicon) -> list[tuple[str, list[tuple[str, ...]]]]:
    return [(word, lexicon[word]) for word in lexicon.words()]


def test_reads_tabs_spaces_stress_and_several_pronunciations(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("READ\tR IY1 D\n\nA AH0\nREAD R EH1 D\nREAD\tR IY0 D\n")
    lexicon = Lexicon.read(path)
    assert content(lexicon) == [
        ("READ", [("R", "IY", "D"), ("R", "EH", "D")]),
        ("A", [("AH",)]),
    ]
    assert lexicon.phones == ("AH", "D", "EH", "IY", "R")
    assert "READ" in lexicon
    assert "B" not in lexicon
    assert len(lexicon) == 2


@settings(max_examples=20)
@given(entries=entries)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, tuple[str, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.txt"
    lexicon = Lexicon(entries)
    lexicon.write(path)
    assert content(Lexicon.read(path)) == content(lexicon)
    assert [file.name for file in path.parent.iterdir()] == ["lexicon.txt"]


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_bytes("\ufeffREAD\tR IY1 D\n".encode())
    assert "READ" in Lexicon.read(path)


def test_a_line_without_phones_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("A AH0\n\nBROKEN\n")
    with pytest.raises(DataError, match=r"lexicon\.txt:3: expected a word and its phones"):
        Lexicon.read(path)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"A \xff\xfe"])
def test_a_file_that_is_no_lexicon_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "lexicon.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"lexicon\.txt: "):
        Lexicon.read(path)


def test_words_that_no_transcript_can_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("the DH AH\ncat K AE T\n")
    with pytest.raises(DataError, match=r"lexicon\.txt: expected upper-case words .* got 'the'"):
        Lexicon.read(path)
    path.write_text("<noise> N\nTHE DH AH\n")  # words of its own kind may stand beside others
    assert "THE" in Lexicon.read(path)


def test_the_list_of_pronunciations_is_a_copy() -> None:
    lexicon = Lexicon([("A", ["AH0"])])
    lexicon["A"].append(("EY",))
    assert lexicon["A"] == [("AH",)]
