"""The language of a text, told by its script and its commonest small words. Light.

Coarse on purpose: it serves to see that two sets of rows are in different languages, and rather says
``unsure`` than errs.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

LOOKED_AT = 600
"""Characters of a text that are read."""

FEWEST_LETTERS = 12
UNSURE = "unsure"

# Words that are frequent in one of these languages and rare or absent in the others.
_SMALL_WORDS = {
    "English": "the and of is that was for with are this you it his from they what which were have how",
    "German": "der und das ist nicht ein eine ich mit sich auf auch wie dem wird sind wenn oder aber werden",
    "French": "le les des est une dans qui pour pas que sur avec vous sont cette mais nous aux ces elle",
    "Spanish": "el los las por una con para del como pero sus este cuando más hay muy también está son ser",
    "Italian": "il di che non per della sono con gli nel alla più anche questo dei una ha come delle essere",
    "Portuguese": "não uma com os dos para mais como foi das ao seu sua ou quando muito também está pelo são",
    "Dutch": "het een van dat niet zijn voor met aan ook maar wordt naar deze hij kan worden bij geen wat",
    "Polish": "nie się jest na że do jak ale przez dla czy tylko być tak już może oraz przy które tego",
    "Turkish": "bir ve bu için ile olarak daha çok olan gibi kadar sonra ancak değil ama ne her var en mi",
}
_OWNERS: Counter[str] = Counter(word for words in _SMALL_WORDS.values() for word in words.split())
_LANGUAGE_OF = {
    word: name for name, words in _SMALL_WORDS.items() for word in words.split() if _OWNERS[word] == 1
}
_WORD = re.compile(r"[^\W\d_]+")
LANGUAGES = (UNSURE, *_SMALL_WORDS)
_SCRIPTS = {
    "CJK": "Chinese or Japanese",
    "HIRAGANA": "Chinese or Japanese",
    "KATAKANA": "Chinese or Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic script",
    "ARABIC": "Arabic script",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Devanagari script",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "TELUGU": "Telugu",
    "THAI": "Thai",
}


def language_of(text: str) -> str:
    """A name such as ``German`` or ``Cyrillic script``, or :data:`UNSURE`."""
    start = text[:LOOKED_AT]
    if not start.isascii() and (script := _script_of(start)) is not None:
        return script
    votes = Counter(_LANGUAGE_OF[word] for word in _WORD.findall(start.lower()) if word in _LANGUAGE_OF)
    if not votes:
        return UNSURE
    (best, count), *rest = votes.most_common(2)
    # Two small words, and twice as many as of any other language.
    return best if count >= 2 and count >= 2 * (rest[0][1] if rest else 0) else UNSURE


def _script_of(text: str) -> str | None:
    """The script of most letters where it is not Latin; None for Latin and for too few letters."""
    letters = [char for char in text if char.isalpha()]
    if len(letters) < FEWEST_LETTERS:
        return None
    foreign = Counter(
        _SCRIPTS.get(unicodedata.name(char, "").partition(" ")[0], "") for char in letters if char > "ɏ"
    )
    foreign.pop("", None)
    if not foreign:
        return None
    name, count = foreign.most_common(1)[0]
    return name if 2 * count > len(letters) else None
