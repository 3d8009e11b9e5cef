"""Pronunciation of words that no lexicon has: letter-to-sound rules of English."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from asr.errors import DataError

# Letter-to-sound rules in the form of Elovitz et al., "Automatic Translation of English Text to
# Phonetics by Means of Letter-to-Sound Rules" (NRL 7948, 1976): LEFT/LETTERS/RIGHT PHONES, where
# LEFT and RIGHT are regular expressions of what stands around the letters, with v a vowel letter,
# c a consonant letter and ~ a final silent e. Of the rules that fit at a letter, the first one here
# is taken; one without phones is silent.
_RULES = """
/A/$ AH
/AUGH/T AO
/AI/R EH
/AI/ EY
/AY/ EY
/AU/ AO
/AW/ AO
/ALK/ AO K
/AL/L AO
/AL/(T|D|M|W) AO L
v.*/ATE/S?$ AH T
v.*/AGE/S?$ IH JH
v.*/AR/S?$ ER
/A/R~ EH
/ARR/ AE R
/A/R[AEIO] EH
W/AR/c AO R
v.*/ARD/ ER D
/AR/ AA R
v.*/AL/(LY|S)?$ AH L
v.*/A/N(CE|T|TS|CES|CY|S)?$ AH
/ABLE/S?$ AH B AH L
/ABLY/$ AH B L IY
v.*/ACE/S?$ AH S
/A/STE EY
/A/NG[EI] EY
/A/c~ EY
/A/cING EY
/A/(TI|CI|SI)[AO] EY
/A/c[IE][AOU] EY
W/A/[NTS] AA
^/A/cv AH
v.*/AN/ AH N
/AH/ AA
/AE/ IY
/A/ AE
M/B/(S|ED|ING)?$
/BB/ B
/B/TS?$
/B/ B
/CCH/ K
/CC/[EIY] K S
/CC/ K
/CK/ K
/CH/[RL] K
^S/CH/ K
/CH/ CH
/CI/[AO] SH
/C/EAN SH
S/C/[EIY]
/C/[EIY] S
/C/ K
/DG/[EIY] JH
/DD/ D
/D/ D
/EAU/ OW
/EIGH/ EY
/EAR/[NLTC] ER
/EA/R IH
/EA/(D|TH|SUR|LTH|V|NT) EH
/EA/ IY
/EE/R IH
/EE/ IY
C/EI/ IY
/EI/ EY
/EU/ Y UW
/EY/S?$ IY
/EY/ EY
(R|L|J|CH)/EW/ UW
/EW/ Y UW
/E/RE$ IH
/ERR/ EH R
/E/RI[AEOU] IH
/ER/v EH R
/ER/ ER
[TD]/ED/$ IH D
v.*([PKFXHC]|[^AEIOU]S)/ED/$ T
v.*/ED/$ D
v.*([SXZCG]|[CS]H)/ES/$ IH Z
v.*/E/S?$
v.*/E/(LY|MENT|FUL|LESS|NESS)
v.*cc?/EMENT/ M AH N T
v.*/EN/(CE|T|TS|CES|S|CY)?$ AH N
v.*/EL/S?$ AH L
v.*/EST/$ AH S T
v.*/ESS/$ AH S
v.*/ET/S?$ AH T
^/E/cv IH
^(R|D|B|PR)/E/cc?v IH
/E/c~ IY
v.*c/E/cv AH
/E/$ IY
/E/ EH
/FF/ F
/F/ F
/GUE/S?$ G
/GU/[EIA] G
^/G/N
/G/NS?$
^/GH/ G
/GHT/ T
/GH/
/G/(ET|IV|IR|EAR) G
/GG/ G
/G/[EIY] JH
/G/ G
^/H/(ONE|OUR|EIR)
R/H/
/H/v HH
/H/
/IGHT/ AY T
/IGH/ AY
/IGN/ AY N
^/I/c IH
/IN/(D|DS|DLY|DER)$ AY N
/I/LDS?$ AY
/IER/ IY ER
^cc?c?/IE/(S|D)?$ AY
/IE/S?$ IY
/IED/$ IY D
/IEW/ Y UW
/IE/ IY
/IR/E AY ER
/IR/v IH R
/IR/ ER
/I/VE(S|LY)?$ IH
/IBLE/S?$ AH B AH L
v.*c/INE/S?$ IY N
v.*/ICE/S?$ IH S
/ISM/ IH Z AH M
/IZ/ AY Z
/I/c~ AY
/I/(T|D|N|K|L|V|P|M)ING$ AY
^cc?/I/v AY
/IO/U IY
/IO/ IY AH
/IA/N?S?$ IY AH
/I/v IY
/I/$ IY
/I/ IH
/J/ JH
^/K/N
/KK/ K
/K/ K
/LL/ L
c/LE/(S|D)?$ AH L
/L/ L
^/MC/ M AH K
/MM/ M
/MN/S?$ M
/M/ M
/NN/ N
/NG/(S|ED|ING|INGS|LY|NESS|FUL|ER|ERS)?$ NG
/NG/c NG
/NG/[EI] N JH
/NG/ NG G
/N/[KX] NG
/N/ N
/OUGHT/ AO T
/OUGH/S?$ AH F
/OULD/ UH D
/O/UNG AH
/OUR/ AO R
/OUS/ AH S
/OUBL/ AH B L
/OU/ AW
/OA/R AO
/OA/ OW
/OO/R AO
/OO/(K|T$) UH
[GHW]/OO/D UH
/OO/ UW
/OI/ OY
/OY/ OY
/OE/S?$ OW
/OW/(N|S|ED|ING|ER|ERS)?$ OW
/OW/ AW
W/OR/ ER
v.*/OR/S?$ ER
/OR/ AO R
/OL/[DTK] OW L
/O/(STS?$|LL) OW
/OTHER/ AH DH ER
v.*/ON/S?$ AH N
v.*/OM/S?$ AH M
/O/MES?$ AH
/O/V(E|ER|ES|ED)$ AH
/O/(SS|NG|FF) AO
C/O/(M|N)[BDFGJLMNPQRSTV] AH
/O/c~ OW
/O/(TI|CI|SI)[AO] OW
/O/(H|$|S$) OW
/O/c[IE][AOU] OW
v.*c/O/cv AH
/O/ AA
/PH/ F
^/P/[SN]
/PP/ P
/P/ P
/QUE/S?$ K
/QU/ K W
/Q/ K
/RRH/ R
/RH/ R
/RR/ R
/R/ R
/SCH/OO S K
/SCH/ SH
/SSI/O SH
/SSU/ SH UH
/SS/ S
/SH/ SH
v/SI/ON ZH
/SI/ON SH
v/SUR/ ZH ER
/SURE/ SH UH R
v/S/(E|ED|ES|ING|ER|ERS)$ Z
([BDGLMNRW]|[AEIO]E?|[EA]Y)/S/$ Z
/S/ S
/TCH/ CH
/TIO/N SH AH
/TI/[AOE] SH
/TUR/[EAI] CH ER
/TU/[AO] CH UW
S/T/LE
^/TH/(E|EM|EN|ERE|ESE|EIR|EY|IS|AT|AN|OSE|OUGH|US|Y)$ DH
/TH/(E|ER|ERS|ES|ED|ING)$ DH
/TH/ TH
/TT/ T
/T/ T
Q/U/ W
/UE/S?$ UW
^/UN/ AH N
^/U/cv Y UW
/UR/~ Y UH R
/UR/v Y UH R
/URR/ ER
/UR/ ER
/UI/ IH
/UY/ AY
[PBF]/U/(LL|SH) UH
(R|L|J|S|CH|D|T|N)/U/cv UW
/U/cv Y UW
/U/$ UW
v.*/UM/S?$ AH M
v.*/US/$ AH S
/U/ AH
/VV/ V
/V/ V
^/WHO/ HH UW
/WH/ W
^/W/R
[OAE]/W/c
/W/ W
^/X/ Z
^E/X/v G Z
/X/ K S
^/Y/v Y
^c+/Y/$ AY
^c+/YE/ AY
/Y/c~ AY
v.*/Y/$ IY
v/Y/v Y
/Y/c IH
/Y/ IY
/ZZ/ Z
/Z/ Z
"""

_NAMES = {
    **dict(zip("0123456789", (
        "Z IH R OW", "W AH N", "T UW", "TH R IY", "F AO R", "F AY V", "S IH K S", "S EH V AH N",
        "EY T", "N AY N",
    ), strict=True)),
    **dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
        "EY", "B IY", "S IY", "D IY", "IY", "EH F", "JH IY", "EY CH", "AY", "JH EY", "K EY",
        "EH L", "EH M", "EH N", "OW", "P IY", "K Y UW", "AA R", "EH S", "T IY", "Y UW", "V IY",
        "D AH B AH L Y UW", "EH K S", "W AY", "Z IY",
    ), strict=True)),
}  # fmt: skip


_CONTEXTS = {"v": "(?:A|E|I|O|U|Y)", "c": "[^AEIOUY]", "~": "E(?:S|D|R|RS|LY)?$"}


class _Rule(NamedTuple):
    left: re.Pattern[str]
    letters: str
    right: re.Pattern[str]
    phones: tuple[str, ...]

    def fits(self, word: str, at: int) -> bool:
        end = at + len(self.letters)
        return (
            word.startswith(self.letters, at)
            and self.right.match(word[end:]) is not None
            and self.left.search(word[:at]) is not None
        )


@functools.cache
def _rules() -> dict[str, list[_Rule]]:
    """The rules by the first of their letters; compiled only when a word has to be spelled."""
    rules: dict[str, list[_Rule]] = {}
    for line in _RULES.strip().split("\n"):
        pattern, _, phones = line.partition(" ")
        for name, letters in _CONTEXTS.items():
            pattern = pattern.replace(name, letters)
        left, letters, right = pattern.split("/")
        rule = _Rule(re.compile(f"(?:{left})$"), letters, re.compile(right), tuple(phones.split()))
        rules.setdefault(letters[0], []).append(rule)
    return rules


def _read_letters(word: str) -> Iterator[str]:
    """Phones of a word of A-Z."""
    at = 0
    while at < len(word):
        rule = next(rule for rule in _rules()[word[at]] if rule.fits(word, at))
        yield from rule.phones
        at += len(rule.letters)


def spell(word: str) -> tuple[str, ...]:
    """A guess at the phones of an English `word` that no lexicon has, never empty.

    Letters are read by rule; digits, single letters and runs of consonants by their names;
    apostrophes are skipped. Against speechocean762's lexicon about 15 % of the phones differ.

    Raises:
        DataError: the word has other characters than A-Z, 0-9 and ', or no letter and no digit.
    """
    runs = re.findall("[A-Z]+|[0-9]", word.replace("'", ""))
    if not runs or not re.fullmatch("[A-Z0-9']+", word):
        raise DataError(f"expected a word of A-Z, 0-9 and ', got {word!r}; normalize the text")
    phones: list[str] = []
    for run in runs:
        said = list(_read_letters(run)) if re.search("[AEIOUY]", run) and len(run) > 1 else []
        for name in [] if said else run:
            said += _NAMES[name].split()
        phones += said
    return tuple(phones)
