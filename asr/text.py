"""The one written form that transcripts, lexicons and language models share."""

import re
import unicodedata

_APOSTROPHES = re.compile("[\u2018\u2019\u201a\u201b\u02bb\u02bc\u2032\u0060\u00b4\uff07]")
_OTHER = re.compile("[^A-Z0-9']+")


def normalize(text: str) -> str:
    """`text` as upper-case words of A-Z, 0-9 and apostrophe with single spaces between.

    Compatibility forms are folded (NFKC) and accents dropped, curly apostrophes become straight;
    hyphens, dashes and every other character become a space. An apostrophe that touches no
    letter or digit is punctuation and goes. `normalize` of its own output changes nothing.
    """
    # Apostrophes first: NFKC turns the acute accent alone into a space and a combining mark.
    straight = _APOSTROPHES.sub("'", text)
    # Upper case before the accents are split off (the long s has no accent but an upper case),
    # and compatibility forms once more after it.
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", straight).upper())
    letters = "".join(c for c in folded if not unicodedata.combining(c))
    words = _OTHER.sub(" ", letters).split()
    return " ".join(word for word in words if word.strip("'"))
