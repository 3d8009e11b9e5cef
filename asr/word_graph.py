"""The words that beam search may find: a prefix tree of spellings and an n-gram model of words."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flashlight.lib.text.decoder import LM, SmearingMode, Trie

from asr.arpa import load_kenlm, read_unigrams
from asr.errors import DataError
from asr.text import normalize
from asr.tokenizer import CharacterTokenizer, PhonemeTokenizer, Tokenizer

Spelling = tuple[int, ...]  # units of a word

# Words with one spelling, of which flashlight's tree holds six at most. With three the search asks
# the language model less, and had as many of the words of development speech right (RESULTS.md).
_HOMOPHONES = 3
# Of a word's log10-probability alone, what a path pays while the word is not yet known; the rest
# follows at its end, with what the words before make of it. With all of it
# the search took a seventh longer, and had 0.3 to 0.5 % more of the words of development speech
# wrong with three networks of four (recipes/RESULTS.md).
_FORESIGHT = 0.8


@dataclass(frozen=True)
class WordGraph:
    """Words with their spellings as a prefix tree, and the n-gram model that scores them.

    flashlight ends a word at the first frame of what the tree has last. There a unit u that lasts
    one frame is V + u, and one that lasts several is u and then, for the last of them, 2 V + u.
    Of hotwords these have columns of their own, from 3 V on, where the bonus is added: a language
    model that knew of it would be one in Python, and the search take seven times as long.
    """

    words: tuple[str, ...]  # label -> word, likeliest first
    trie: Trie
    language_model: LM
    num_units: int  # V
    separator: int | None  # unit that every spelling begins with, if units are characters
    bonuses: tuple[tuple[int, float], ...] = ()  # of column 3 V + n: the one it repeats, log10


def load_word_graph(
    tokenizer: Tokenizer,
    language_model: Path,
    hotwords: Mapping[str, float] = MappingProxyType({}),
) -> WordGraph:
    """Words of the language model, spelled by the tokenizer, phonemes by its lexicon.

    A word that only the lexicon knows is left out: the language model would score it as the sum
    of all unknown words, which is likelier than most words.

    Args:
        tokenizer: the model's.
        language_model: n-gram model in ARPA format, gzipped or not.
        hotwords: normalised words and what is added to their log10-probabilities. Those that the
            language model lacks are scored as its unknown word, those that the lexicon lacks
            are spelled by rule. Of more than three words that sound alike the likeliest stay.

    Raises:
        DataError: the language model is missing or not ARPA, or no word of it is in the lexicon.
    """
    unigrams = read_unigrams(language_model)
    separator = separator_of(tokenizer)
    spellings = _speller(tokenizer, separator)
    labels: dict[str, int] = {}
    homophones: Counter[Spelling] = Counter()
    num_units = len(tokenizer.units)
    trie = Trie((3 + 2 * len(set(hotwords.values()))) * num_units, 0)
    columns: dict[tuple[int, float], int] = {}  # what a hotword has in the place of a column
    rarest = min(unigrams.values())
    promises = unigrams | {
        word: unigrams.get(word, rarest) + bonus for word, bonus in hotwords.items()
    }
    # Likeliest first: of more homophones than stay, these are wanted.
    for word in sorted(promises, key=promises.__getitem__, reverse=True):
        for spelling in spellings(word) or _by_rule(tokenizer, word, hotwords):
            if homophones[spelling] < _HOMOPHONES:
                homophones[spelling] += 1
                label = labels.setdefault(word, len(labels))
                promise = _FORESIGHT * promises[word]
                *others, last = spelling
                ends = [num_units + last, 2 * num_units + last]
                if word in hotwords:
                    repeated = [(column, hotwords[word]) for column in ends]
                    ends = [columns.setdefault(r, 3 * num_units + len(columns)) for r in repeated]
                trie.insert([*others, ends[0]], label, promise)
                trie.insert([*spelling, ends[1]], label, promise)
    if not labels:
        raise DataError(
            f"{language_model}: expected words of the lexicon, got none of them; make the "
            "language model with the lexicon's words as vocabulary"
        )
    trie.smear(SmearingMode.MAX)
    words = tuple(labels)
    model = load_kenlm(language_model, words)
    return WordGraph(words, trie, model, num_units, separator, tuple(columns))


def separator_of(tokenizer: Tokenizer) -> int | None:
    """The unit that every spelling begins with, if units are characters."""
    return tokenizer.separator if isinstance(tokenizer, CharacterTokenizer) else None


def find_language_model(directory: Path) -> Path:
    """`lm.arpa` of a model directory, or its `lm.arpa.gz`.

    Raises:
        DataError: it has neither.
    """
    for name in ("lm.arpa", "lm.arpa.gz"):
        if (directory / name).is_file():
            return directory / name
    raise DataError(
        f"{directory}: expected lm.arpa.gz for beam search, found none; make one with "
        "scripts/make_language_model.py, or decode greedily"
    )


def _speller(tokenizer: Tokenizer, separator: int | None) -> Callable[[str], list[Spelling]]:
    if not isinstance(tokenizer, PhonemeTokenizer):
        first = [] if separator is None else [separator]
        return lambda word: [(*first, *tokenizer.encode(word))] if normalize(word) == word else []
    pronunciations = tokenizer.lexicon
    units = {unit: index for index, unit in enumerate(tokenizer.units)}

    def spell(word: str) -> list[Spelling]:
        if word not in pronunciations:
            return []
        return [tuple(map(units.__getitem__, phones)) for phones in pronunciations[word]]

    return spell


def _by_rule(tokenizer: Tokenizer, word: str, hotwords: Mapping[str, float]) -> list[Spelling]:
    """Spelling of a hotword that is not in the lexicon; of another word none."""
    return [tuple(tokenizer.encode(word))] if word in hotwords else []
