"""Words that are expected: found though the language model is against them."""

from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path

from asr.errors import ConfigError, DataError
from asr.text import foreign_letters, normalize

HOTWORD_SCORE = 4.0  # log10: 10,000 times as likely
_MOST = 100.0  # either way: more would be more than what the search takes for never


def read_hotwords(path: Path) -> tuple[str, ...]:
    """Words of a text file, normalised, in the order in which they first come.

    Raises:
        DataError: the file is missing, or holds no words or letters of another script.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of hotwords; give one with a word a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected words in UTF-8, got {error.reason}") from None
    words = normalize(text).split()
    if letters := foreign_letters(text):
        raise DataError(f"{path}: expected hotwords in letters of A-Z, got {letters}")
    if not words:
        raise DataError(f"{path}: expected hotwords, a word a line, got none")
    return tuple(dict.fromkeys(words))


def bonuses_of(hotwords: Mapping[str, float] | Iterable[str]) -> dict[str, float]:
    """What is added to the log10-probability of each hotword, normalised: `HOTWORD_SCORE` of those
    that come without a number.

    Raises:
        ConfigError: these are no words, or have letters of another script, or a number is not
            from -100 to 100.
    """
    if isinstance(hotwords, Iterable) and not isinstance(hotwords, str | Mapping):
        hotwords = dict.fromkeys(hotwords, HOTWORD_SCORE)
    if not (isinstance(hotwords, Mapping) and all(isinstance(word, str) for word in hotwords)):
        raise ConfigError(f"hotwords: expected words, or words with numbers, got {hotwords!r}")
    if letters := foreign_letters(" ".join(hotwords)):
        raise ConfigError(f"hotwords: expected letters of A-Z, got {letters}")
    wrong = {
        word: bonus
        for word, bonus in hotwords.items()
        if not (isinstance(bonus, Real) and abs(float(bonus)) <= _MOST)
    }
    if wrong:
        raise ConfigError(f"hotwords: expected bonuses from {-_MOST:g} to {_MOST:g}, got {wrong}")
    return {word: bonus for text, bonus in hotwords.items() for word in normalize(text).split()}
