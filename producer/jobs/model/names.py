"""Names of strangers as parts of object keys and of file names: they stay themselves as far as that is safe.

| in a name                                                     | becomes                                    |
|---------------------------------------------------------------|--------------------------------------------|
| letters and numbers of any script, `.` `_` `-`                | themselves, in Unicode's form NFC          |
| marks (accents, vowel signs) on a letter, number or emoji     | themselves                                 |
| emoji, with what joins several of them into one               | themselves                                 |
| spaces, other signs and punctuation, control characters, what | `_` each                                   |
| turns the direction of text, what is invisible, private,      |                                            |
| unassigned, or half of a character                            |                                            |
| dots at the beginning and the end                             | nothing                                    |
| what Windows keeps for devices (`con`, `NUL.txt`)             | itself with a `_` before it                |
| more than 200 bytes of UTF-8                                  | its beginning, whole characters, and suffix |

A name that is safe stays as it is. Which characters are assigned says Python's own table: that of 3.11 is Unicode 14.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

#: File systems take 255 bytes; an index or the kind of a picture comes beside it.
MAX_BYTES: Final = 200

#: What a job may be called. What is no job's lies in the store under a name that begins with another character.
_JOB: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ASCII_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
#: Windows takes them for devices, whatever suffix they have.
_RESERVED: Final = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9¹²³])(?:\.|\Z)", re.IGNORECASE)
_SUFFIX: Final = re.compile(r"(?<=.)\.[A-Za-z0-9]{1,10}\Z", re.DOTALL)

_ZWJ: Final = "\u200d"
#: They choose between the looks of the character before them.
_SELECTORS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_SKIN_TONES: Final = re.compile("[\U0001f3fb-\U0001f3ff]")
_FLAG_LETTER: Final = re.compile("[\U0001f1e6-\U0001f1ff]")
#: Blocks with emoji; what is assigned there and a symbol is taken for one.
_EMOJI: Final = re.compile(
    "[\u00a9\u00ae\u2122\u2194-\u21aa\u2300-\u23ff\u24c2\u25aa-\u27bf\u2934\u2935\u2b00-\u2bff\u303d\u3297\u3299"
    "\U0001f000-\U0001faff]"
)
#: Letters and marks that nobody sees.
_INVISIBLE: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0]")
#: Of old Korean syllables, which are written in several characters.
_JAMO: Final = re.compile("[\u1160-\u11ff\ud7b0-\ud7ff]")
_VIRAMA: Final = 9


def is_job_name(text: str) -> bool:
    """Whether a job can be called so: then it is safe as a part of a Redis key, an object key, a path and a message."""
    return _JOB.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def safe(text: str) -> str:
    """Make a text safe as a part of an object key and of a local file name.

    The result is never empty, and is itself safe: made safe again, it stays as it is.
    """
    name = _ASCII_UNSAFE.sub("_", text) if text.isascii() else _kept(unicodedata.normalize("NFC", text))
    name = name.strip(".")
    if _RESERVED.match(name):
        name = "_" + name
    return _shortened(name) or "_"


def beginning(text: str, max_bytes: int) -> str:
    """As many whole characters of a text, as readers see them, as so many bytes of UTF-8 hold."""
    if len(text.encode(errors="surrogatepass")) <= max_bytes:
        return text
    at, size = 0, 0
    for at, char in enumerate(text):  # noqa: B007 - where it ends is what is looked for
        size += len(char.encode(errors="surrogatepass"))
        if size > max_bytes:
            break
    cut = at
    while cut and not _may_cut(text, cut):
        cut -= 1
    # One that is longer than all there is room for has to be cut somewhere.
    return text[:cut] if cut else text[:at].rstrip(_ZWJ)


def end(text: str, max_bytes: int) -> str:
    """The end of a text, of whole characters, that so many bytes of UTF-8 hold."""
    sizes = [len(char.encode(errors="surrogatepass")) for char in text]
    at, left = 0, sum(sizes)
    while left > max_bytes or (at and at < len(text) and not _may_cut(text, at)):
        left -= sizes[at]
        at += 1
    return text[at:]


def _kept(text: str) -> str:
    kept: list[str] = []
    for at, char in enumerate(text):
        before = kept[-1] if kept else ""
        kept.append(char if _is_safe(char, before, text[at + 1 : at + 2]) else "_")
    return "".join(kept)


def _is_safe(char: str, before: str, after: str) -> bool:
    if char.isascii():
        return not _ASCII_UNSAFE.match(char)
    if char == _ZWJ:
        # Between two emoji; or as the scripts of India and Sri Lanka have it, behind the sign that joins consonants.
        joins = _is_emoji(before) or _SELECTORS.match(before)
        return bool(joins and _is_emoji(after)) or (_is_virama(before) and _is_letter(after))
    if _INVISIBLE.match(char):
        return False
    kind = unicodedata.category(char)
    if kind[0] == "M":
        return bool(before) and (before.isalnum() or unicodedata.category(before)[0] in "MN" or _is_emoji(before))
    return kind[0] in "LN" or _is_emoji(char)


def _is_emoji(char: str) -> bool:
    return bool(char and _EMOJI.match(char)) and unicodedata.category(char) in {"So", "Sk", "Sm"}


def _is_letter(char: str) -> bool:
    return bool(char) and unicodedata.category(char)[0] == "L" and not _INVISIBLE.match(char)


def _is_virama(char: str) -> bool:
    return bool(char) and unicodedata.combining(char) == _VIRAMA


def _shortened(name: str) -> str:
    if len(name.encode()) <= MAX_BYTES:
        return name
    found = _SUFFIX.search(name)
    suffix = found[0] if found else ""
    return (beginning(name.removesuffix(suffix), MAX_BYTES - len(suffix)) + suffix).rstrip(".")


def _may_cut(text: str, at: int) -> bool:
    """Whether a character, as readers see it, ends before this place: Unicode's annex 29, where in doubt not."""
    before, after = text[at - 1], text[at]
    if unicodedata.category(after)[0] == "M" or after == _ZWJ or _SKIN_TONES.match(after) or _JAMO.match(after):
        return False
    if before == _ZWJ or _is_virama(before):
        return False
    if _FLAG_LETTER.match(after):
        # Two make a flag: how many stand before?
        return (at - len(text[:at].rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))) % 2 == 0
    return True
