"""The one written form that transcripts, lexicons and language models share."""

import re
import unicodedata

_APOSTROPHES = re.compile("[\u2018\u2019\u201a\u201b\u02bb\u02bc\u2032\u0060\u00b4\uff07]")
_ZERO_WIDTH_SPACE = "\u200b"
_OTHER_ONE = re.compile("[^A-Z0-9']")
_OTHER = re.compile(_OTHER_ONE.pattern + "+")


def normalize(text: str) -> str:
    """`text` as upper-case words of A-Z, 0-9 and apostrophe with single spaces between.

    Compatibility forms are folded (NFKC), accents and what is not seen (soft hyphens, joiners)
    dropped, curly apostrophes become straight; hyphens, dashes and every other character become a
    space. An apostrophe that touches no letter or digit is punctuation and goes. `normalize` of
    its own output changes nothing.
    """
    words = _OTHER.sub(" ", _folded(text)).split()
    return " ".join(word for word in words if word.strip("'"))


def foreign_letters(text: str) -> str:
    """Letters and digits that `normalize` can only leave out, each once: those of other scripts.

    Whoever said them would find words missing that nobody has named.
    """
    rest = dict.fromkeys(_OTHER_ONE.findall(_folded(text)))
    return "".join(c for c in rest if unicodedata.category(c)[0] in "LN")


def _folded(text: str) -> str:
    # Apostrophes first: NFKC turns the acute accent alone into a space and a combining mark.
    straight = _APOSTROPHES.sub("'", text)
    # Upper case before the accents are split off (the long s has no accent but an upper case),
    # and compatibility forms once more after it.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", straight).upper())
    # And apostrophes: NFKC finds some inside other letters.
    return _APOSTROPHES.sub("'", "".join(c for c in folded if not _is_mark(c)))


def _is_mark(c: str) -> bool:
    """Whether it belongs to the letter before: accents, and what is not seen within a word."""
    invisible = unicodedata.category(c) in ("Mn", "Me", "Cf") and c != _ZERO_WIDTH_SPACE
    return invisible or unicodedata.combining(c) != 0
