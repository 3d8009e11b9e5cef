"""Pronunciation lexicon: words and the phones they are said with."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from asr.errors import DataError
from asr.files import write_text
from asr.text import normalize

PHONES: tuple[str, ...] = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY",
    "F", "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY",
    "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
"""The 39 ARPAbet phones, without stress."""

Pronunciation = tuple[str, ...]


@cache  # there are few phones, and half a million of them in the packaged lexicon
def _without_stress(phone: str) -> str:
    return phone.rstrip("012")


class Lexicon:
    """Word -> pronunciations, in the order they were given; the first one is the usual one.

    Args:
        entries: pairs of a word and one of its pronunciations; a word may come again. Phones are
            any names without spaces; a stress digit at the end of one is taken off. A
            pronunciation that its word already has is kept once.

    Raises:
        DataError: an entry without a word or without phones.
    """

    def __init__(self, entries: Iterable[tuple[str, Iterable[str]]] = ()) -> None:
        self._entries: dict[str, list[Pronunciation]] = {}
        for word, phones in entries:
            self.add(word, phones)

    def add(self, word: str, phones: Iterable[str]) -> None:
        """Add one pronunciation of `word`.

        Raises:
            DataError: no word or no phones.
        """
        pronunciation = tuple(map(_without_stress, phones))
        if not word or not all(pronunciation) or not pronunciation:
            got = f"{word} {' '.join(pronunciation)}".strip()
            raise DataError(f"expected a word and its phones, got {got!r}; give WORD PH PH PH")
        known = self._entries.setdefault(word, [])
        if pronunciation not in known:
            known.append(pronunciation)

    @classmethod
    def read(cls, path: str | Path) -> "Lexicon":
        """Read lines of `WORD<tab or space>PH PH PH`; empty lines are passed over.

        Raises:
            DataError: the file is missing, empty or not text, or a line (named) has no phones.
        """
        lexicon = cls()
        try:
            with Path(path).open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, 1):
                    word, *phones = line.split() or [""]
                    if not word:
                        continue
                    try:
                        lexicon.add(word, phones)
                    except DataError as error:
                        raise DataError(f"{path}:{number}: {error}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot read the lexicon: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected a lexicon in UTF-8, got {error.reason}") from None
        if not len(lexicon):
            raise DataError(f"{path}: expected lines of WORD PH PH PH, got an empty lexicon")
        if not any(normalize(word) == word for word in lexicon.words()):
            raise DataError(
                f"{path}: expected upper-case words of A-Z, 0-9 and apostrophe, got "
                f"{next(lexicon.words())!r} and its like; pass them through asr.text.normalize"
            )
        return lexicon

    def write(self, path: str | Path) -> None:
        """Write `WORD<tab>PH PH PH`, one pronunciation a line, atomically."""
        lines = (
            f"{word}\t{' '.join(phones)}\n"
            for word, pronunciations in self._entries.items()
            for phones in pronunciations
        )
        write_text(Path(path), "".join(lines))

    @property
    def phones(self) -> tuple[str, ...]:
        """The phones that occur, sorted."""
        return tuple(
            sorted({phone for known in self._entries.values() for each in known for phone in each})
        )

    def words(self) -> Iterator[str]:
        """The words, in the order they were given."""
        return iter(self._entries)

    def __contains__(self, word: str) -> bool:
        return word in self._entries

    def __getitem__(self, word: str) -> list[Pronunciation]:
        return list(self._entries[word])

    def __len__(self) -> int:
        return len(self._entries)
