"""Make a pronunciation lexicon over a vocabulary with espeak-ng's letter-to-sound rules.

A word gets the pronunciation of espeak-ng's American English, its phonemes mapped to the 39
ARPAbet phones; words of a lexicon given with --base get the pronunciations of that one before it
(or after it, with --first espeak), words of `COMMON` the ones they have in running speech.

The lexicon of the packaged model (espeak-ng 1.51), in the folder of the speech data:

  for set in fsdd librispeech ljspeech speechocean762; do
    awk -F'\\t' 'NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
      !("split" in column) || $column["split"] == "train" { print $column["transcript"] }' \\
      $set/utterances.tsv
  done | tr a-z A-Z | tr -cs "A-Z'" '\\n' > words
  cut -f 1 speechocean762/lexicon.txt >> words
  { head -n 60000 librispeech/train_word_counts.txt | tr a-z A-Z
    xz -dc text/books.txt.xz | tr ' ' '\\n' | sort | uniq -c | awk '$1 >= 40 { print $2, $1 }'
  } | awk '$1 ~ /[AEIOUY]/ || $2 >= 50 { print $1 }' >> words
  python scripts/make_lexicon.py --vocabulary words --base speechocean762/lexicon.txt \\
    --out lexicon.txt
"""

# ruff: noqa: RUF001 -- phonetic letters look like others on purpose

import argparse
import itertools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from asr.errors import DataError
from asr.lexicon import Lexicon, Pronunciation
from asr.spelling import spell

ARPABET: dict[str, str] = {
    # vowels; a long one is written with ː
    "i": "IY", "iː": "IY", "ɪ": "IH", "ᵻ": "IH", "ɛ": "EH", "eɪ": "EY", "e": "EY", "æ": "AE",
    "a": "AE", "aː": "AA", "ɑː": "AA", "ɑ": "AA", "ɔ": "AO", "ɔː": "AO", "oː": "AO", "oʊ": "OW",
    "o": "OW", "ʊ": "UH", "u": "UW", "uː": "UW", "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ɜː": "ER",
    "ɚ": "ER", "aɪ": "AY", "aʊ": "AW", "ɔɪ": "OY", "iə": "IY AH", "aɪə": "AY AH", "aɪɚ": "AY ER",
    "ɑːɹ": "AA R", "ɔːɹ": "AO R", "oːɹ": "AO R", "ɛɹ": "EH R", "ɪɹ": "IH R", "ʊɹ": "UH R",
    "əl": "AH L", "n̩": "AH N", "l̩": "AH L", "m̩": "AH M", "ɑ̃": "AA N", "ɔ̃": "AO N",
    # consonants; ɾ is the flap of "butter", ʔ the glottal stop of "button": both a T
    "b": "B", "tʃ": "CH", "d": "D", "ð": "DH", "f": "F", "ɡ": "G", "ɡʲ": "G", "h": "HH",
    "dʒ": "JH", "k": "K", "x": "K", "ç": "HH", "l": "L", "ɬ": "L", "m": "M", "n": "N", "ɲ": "N Y",
    "ŋ": "NG", "p": "P", "ɹ": "R", "r": "R", "s": "S", "ʃ": "SH", "t": "T", "ɾ": "T", "ʔ": "T",
    "θ": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z", "ʒ": "ZH",
}  # fmt: skip

# Words that espeak-ng, which reads them alone, says as they are seldom said in a sentence; the
# usual pronunciation first.
COMMON: dict[str, tuple[str, ...]] = {
    "A": ("AH", "EY"), "AM": ("AE M", "AH M"), "AN": ("AE N", "AH N"),
    "AND": ("AE N D", "AH N D", "AH N"), "ARE": ("AA R", "ER"), "AS": ("AE Z", "AH Z"),
    "AT": ("AE T", "AH T"), "BECAUSE": ("B IH K AO Z", "B IH K AH Z"),
    "CAN": ("K AE N", "K AH N"), "FOR": ("F AO R", "F ER"), "FROM": ("F R AH M",),
    "HAD": ("HH AE D", "AH D"), "HAS": ("HH AE Z", "AH Z"), "HAVE": ("HH AE V", "AH V"),
    "HER": ("HH ER", "ER"), "HIM": ("HH IH M", "IH M"), "HIS": ("HH IH Z", "IH Z"),
    "INTO": ("IH N T UW", "IH N T AH"), "JUST": ("JH AH S T", "JH IH S T"),
    "MUST": ("M AH S T", "M AH S"), "OF": ("AH V", "AH"), "ON": ("AA N", "AO N"),
    "OR": ("AO R", "ER"), "OUR": ("AW ER", "AA R"), "SHALL": ("SH AE L", "SH AH L"),
    "THAN": ("DH AE N", "DH AH N"), "THAT": ("DH AE T", "DH AH T"),
    "THE": ("DH AH", "DH IY"), "THEM": ("DH EH M", "DH AH M"), "TO": ("T UW", "T AH"),
    "WANT": ("W AA N T", "W AO N T"), "WERE": ("W ER",), "WITH": ("W IH DH", "W IH TH"),
    "YOU": ("Y UW", "Y AH"), "YOUR": ("Y AO R", "Y ER"),
}  # fmt: skip
_WORD = re.compile("[A-Z']*[A-Z][A-Z']*")
_STRESS = str.maketrans("", "", "ˈˌ\u200d")
_ROMAN = ["R", "OW", "M", "AH", "N"]


def read_vocabulary(path: Path, limit: int | None = None) -> list[str]:
    """The words of a file with one `WORD` or `WORD COUNT` a line, upper case, first `limit`.

    Words with other characters than A-Z and apostrophe are left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the vocabulary: {error}") from None
    fields = (line.upper().split() for line in lines)
    words = dict.fromkeys(first[0] for first in fields if first and _WORD.fullmatch(first[0]))
    return list(words)[:limit]


def to_arpabet(ipa: str, word: str = "") -> Pronunciation:
    """ARPAbet phones of espeak-ng's `ipa` (phonemes separated by `_`, words by a space).

    Raises:
        DataError: a phoneme that is not in `ARPABET`.
    """
    phones: list[str] = []
    for phoneme in re.split("[_ ]+", ipa.translate(_STRESS).strip("_ ")):
        if phoneme not in ARPABET:
            raise DataError(f"{word}: expected a phoneme of English, got {phoneme!r} in {ipa!r}")
        phones += ARPABET[phoneme].split()
    # espeak-ng reads numerals such as VI as "roman six"
    if phones[: len(_ROMAN)] == _ROMAN and not word.startswith("RO"):
        del phones[: len(_ROMAN)]
    # espeak-ng says the r of "around" and "memory" twice: as the colour of ɚ, and alone.
    if phones[:2] == ["ER", "R"]:
        phones[0] = "AH"
    phones = [
        p for before, p in zip(["", *phones], phones, strict=False) if (before, p) != ("ER", "R")
    ]
    # No sound is said twice in one English word.
    return tuple(phone for phone, _ in itertools.groupby(phones))


def espeak(words: Sequence[str]) -> Iterator[Pronunciation]:
    """espeak-ng's pronunciation of each word, or that of our own rules where it is silent.

    Raises:
        DataError: espeak-ng is missing, or its lines do not match the words.
    """
    command = ["espeak-ng", "-q", "--ipa", "--sep=_", "-v", "en-us"]
    try:
        # Read from a pipe, every line is a clause of its own and comes back as one line.
        said = subprocess.run(
            command,
            input="\n".join(words).lower() + "\n",
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    except FileNotFoundError:
        raise DataError("espeak-ng is not installed; apt-get install espeak-ng") from None
    if len(said) != len(words):
        raise DataError(f"expected {len(words)} lines from espeak-ng, got {len(said)}")
    for word, ipa in zip(words, said, strict=True):
        yield to_arpabet(ipa, word) if ipa.strip("_ ") else spell(word)


def mismatch(reference: Lexicon, phones: Iterable[tuple[str, Pronunciation]]) -> tuple[int, int]:
    """Edits from each pronunciation to the nearest in `reference`, and the phones of that one."""
    edits = total = 0
    for word, said in phones:
        best = min(reference[word], key=lambda known: distance(known, said))
        edits += distance(best, said)
        total += len(best)
    return edits, total


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def make_lexicon(
    vocabulary: Sequence[str], base: Lexicon, espeak_first: bool = False
) -> tuple[Lexicon, str]:
    """The lexicon of `vocabulary`, and a line on how far espeak-ng is from `base`.

    Of several pronunciations that `base` has for a word, the one nearest to espeak-ng's is
    first: that keeps the accent of the whole lexicon as even as the base allows.
    """
    lexicon = Lexicon()
    shared: list[tuple[str, Pronunciation]] = []
    for word, said in zip(vocabulary, espeak(vocabulary), strict=True):
        ours = [tuple(phones.split()) for phones in COMMON.get(word, ())] or [said]
        known = sorted(base[word], key=partial(distance, ours[0])) if word in base else []
        for pronunciation in [*ours, *known] if espeak_first else [*known, *ours]:
            lexicon.add(word, pronunciation)
        if known:
            shared.append((word, said))
    report = f"{len(lexicon)} words"
    if shared:
        edits, total = mismatch(base, shared)
        report += f"; espeak-ng and the base differ in {edits / total:.1%} of the phones"
        report += f" of {len(shared)} words"
    return lexicon, report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vocabulary", type=Path, required=True, help="WORD or WORD COUNT a line")
    parser.add_argument("--limit", type=int, help="only the first N words of the vocabulary")
    parser.add_argument("--base", type=Path, action="append", default=[], help="lexicon to keep")
    parser.add_argument(
        "--first", choices=["base", "espeak"], default="base", help="whose pronunciation is usual"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        base = Lexicon()
        for path in arguments.base:
            known = Lexicon.read(path)
            for word in known.words():
                for phones in known[word]:
                    base.add(word, phones)
        vocabulary = sorted(read_vocabulary(arguments.vocabulary, arguments.limit))
        lexicon, report = make_lexicon(vocabulary, base, arguments.first == "espeak")
        lexicon.write(arguments.out)
    except DataError as error:
        sys.exit(f"make_lexicon: {error}")
    print(f"{arguments.out}: {report}")


if __name__ == "__main__":
    main()
