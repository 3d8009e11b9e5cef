"""Tokenizers: normalised text to the units the network emits, and back. Unit 0 is CTC's blank."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

from asr.config import UnitConfig
from asr.errors import DataError, ModelError
from asr.files import replacing, write_text
from asr.lexicon import PHONES, Lexicon, Pronunciation
from asr.spelling import spell
from asr.text import normalize

_BLANK = "<blk>"
PACKAGED_LEXICON = Path(__file__).parent / "models" / "english" / "lexicon.txt"
_TOKENS, _LEXICON, _SUBWORDS = "tokens.txt", "lexicon.txt", "subwords.model"
SEPARATOR = "|"  # the character tokenizer's space
_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'" + SEPARATOR
_QUIET = 2  # sentencepiece's minloglevel: errors only


class Tokenizer(Protocol):
    """Text to unit ids and back; `units[0]` is the blank, which `encode` never gives."""

    units: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Ids of normalised `text`.

        Raises:
            DataError: the text has characters that `asr.text.normalize` would change.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, which hold no blanks and no repeats of CTC any more."""
        ...

    def save(self, directory: Path) -> None:
        """Write `tokens.txt` and what else `load_tokenizer` needs, each file atomically."""
        ...


class PhonemeTokenizer:
    """The 39 ARPAbet phones, each word said as its first pronunciation.

    `decode` gives phones with spaces between: which word they spell is for the decoder to find.
    Words that the lexicon lacks are spelled by rule and kept in `out_of_vocabulary`.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        strange = sorted(set(lexicon.phones) - set(PHONES))
        if strange:
            raise DataError(
                f"expected the 39 ARPAbet phones in the lexicon, got {' '.join(strange)}; map them"
            )
        self.lexicon = lexicon
        self.units: tuple[str, ...] = (_BLANK, *PHONES)
        self.out_of_vocabulary: dict[str, Pronunciation] = {}
        self._ids = {unit: index for index, unit in enumerate(self.units)}

    def encode(self, text: str) -> list[int]:
        """Ids of the phones of `text`, word after word."""
        return [self._ids[phone] for word in _words(text) for phone in self.pronounce(word)]

    def pronounce(self, word: str) -> Pronunciation:
        """The first pronunciation of `word`, or a guess that is kept in `out_of_vocabulary`."""
        if word in self.lexicon:
            return self.lexicon[word][0]
        if word not in self.out_of_vocabulary:
            self.out_of_vocabulary[word] = spell(word)
        return self.out_of_vocabulary[word]

    def decode(self, ids: Sequence[int]) -> str:
        """Phones with spaces between."""
        return " ".join(self.units[index] for index in ids)

    def save(self, directory: Path) -> None:
        """Write `tokens.txt` and `lexicon.txt`."""
        _write_units(directory, self.units)
        self.lexicon.write(directory / _LEXICON)


class SubwordTokenizer:
    """A sentencepiece model whose ids are moved up by one to make room for the blank.

    Args:
        model: bytes of a sentencepiece model.

    Raises:
        ModelError: the bytes are no sentencepiece model.
    """

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ModelError("expected a sentencepiece model, got other bytes") from None
        pieces = (self._pieces.IdToPiece(index) for index in range(len(self._pieces)))
        self.units: tuple[str, ...] = (_BLANK, *pieces)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "SubwordTokenizer":
        """Train a unigram model of at most `vocab_size` units, the blank counted, on `texts`.

        The same texts in the same order give the same bytes: one thread, nothing sampled.

        Raises:
            DataError: no text, or `vocab_size` is too small for its characters.
        """
        least = len(_CHARACTERS) + 2  # | is sentencepiece's mark; its unknown piece; the blank
        if vocab_size < least:
            raise DataError(
                f"expected a vocab_size of at least {least}, so that every character has a unit, "
                f"got {vocab_size}"
            )
        sentences = [" ".join(_words(text)) for text in texts]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size - 1,
                hard_vocab_limit=False,  # a small corpus may not hold that many pieces
                required_chars=_CHARACTERS.removesuffix(SEPARATOR),
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=1 << 20,
                shuffle_input_sentence=False,
                num_threads=1,
                bos_id=-1,
                eos_id=-1,
                unk_id=0,
                minloglevel=_QUIET,
            )
        except RuntimeError as error:
            reason = str(error).rsplit("] ", 1)[-1].strip() or "no text to train on"
            raise DataError(
                f"cannot train {vocab_size} subwords on {len(sentences)} texts: {reason}"
            ) from None
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of `text`."""
        return [index + 1 for index in self._pieces.EncodeAsIds(" ".join(_words(text)))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the pieces `ids`, the unknown piece left out."""
        known = [int(index) - 1 for index in ids if index - 1 != self._pieces.unk_id()]
        return str(self._pieces.DecodeIds(known)).strip()

    def save(self, directory: Path) -> None:
        """Write `tokens.txt` and `subwords.model`."""
        _write_units(directory, self.units)
        with replacing(directory / _SUBWORDS) as partial:
            partial.write_bytes(self._model)


class CharacterTokenizer:
    """A-Z, digits, apostrophe and `|` for the space between words."""

    def __init__(self) -> None:
        self.units: tuple[str, ...] = (_BLANK, *_CHARACTERS)
        self.separator = self.units.index(SEPARATOR)
        self._ids = {unit: index for index, unit in enumerate(self.units)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of `text`."""
        return [self._ids[character] for character in SEPARATOR.join(_words(text))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the characters `ids`; spaces that are too many are dropped."""
        return " ".join("".join(self.units[index] for index in ids).replace(SEPARATOR, " ").split())

    def save(self, directory: Path) -> None:
        """Write `tokens.txt`."""
        _write_units(directory, self.units)


def build_tokenizer(units: UnitConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a recipe; subwords are trained on `texts`, the training transcripts.

    Raises:
        DataError: the lexicon cannot be read, or subwords cannot be trained on `texts`.
    """
    match units.kind:
        case "phoneme":
            path = Path(units.lexicon) if units.lexicon else PACKAGED_LEXICON
            return PhonemeTokenizer(Lexicon.read(path))
        case "subword":
            return SubwordTokenizer.train(texts, units.vocab_size)
        case "character":
            return CharacterTokenizer()


def load_tokenizer(units: UnitConfig, directory: Path) -> Tokenizer:
    """The tokenizer that was saved in a model directory.

    Raises:
        ModelError: a file is missing or damaged, or `tokens.txt` lists other units than it makes.
    """
    tokenizer: Tokenizer
    try:
        listed = tuple((directory / _TOKENS).read_text(encoding="utf-8").splitlines())
        match units.kind:
            case "phoneme":
                tokenizer = PhonemeTokenizer(Lexicon.read(directory / _LEXICON))
            case "subword":
                tokenizer = SubwordTokenizer((directory / _SUBWORDS).read_bytes())
            case "character":
                tokenizer = CharacterTokenizer()
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot read: {error.strerror}") from None
    except (DataError, ModelError, UnicodeDecodeError) as error:
        raise ModelError(f"{directory}: {error}") from None
    if listed != tokenizer.units:
        raise ModelError(
            f"{directory / _TOKENS}: expected the {len(tokenizer.units)} {units.kind} units of "
            f"config.toml, got {len(listed)} others; take all files from one model"
        )
    return tokenizer


def _words(text: str) -> list[str]:
    if normalize(text) != text:
        raise DataError(f"expected normalized text, got {text!r}; pass it through normalize first")
    return text.split()


def _write_units(directory: Path, units: Sequence[str]) -> None:
    write_text(directory / _TOKENS, "".join(f"{unit}\n" for unit in units))
