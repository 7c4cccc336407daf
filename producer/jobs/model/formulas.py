"""Texts of strangers in tables: a spreadsheet must not compute them.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula; there may be blanks before the sign, and
a program that splits cells at line breaks finds one in the middle of a text. An apostrophe before it says that it is
text. Where lists are read, the apostrophe is taken off again: what was written comes back as it was.
"""

from __future__ import annotations

import re
from typing import Final

#: The signs, also in full width and small: spreadsheets in East Asian languages read those alike.
_SIGNS: Final = "=+@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b-"
_BREAKS: Final = "\n\r\v\f\x85\u2028\u2029"
#: What programs leave out before a sign: white space, control characters, and what nobody sees; of one line.
_BLANK: Final = f"(?:(?![{_BREAKS}])[\\s\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff])*+"
_LINE: Final = f"(?:\\A|(?<=[{_BREAKS}]))"
#: The beginning of a text, or of a line in it, that a spreadsheet may compute; apostrophes may stand before it already.
_FORMULA: Final = re.compile(f"{_LINE}(?='*+{_BLANK}[{_SIGNS}])|\\A(?='*+[\t\r\n])")
_DEFUSED: Final = re.compile(f"{_LINE}'(?='*+{_BLANK}[{_SIGNS}])|\\A'(?='*+[\t\r\n])")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_FIRST: Final = frozenset("' " + _SIGNS)


def defused(text: str) -> str:
    """Write a text so that no spreadsheet takes it, or a line of it, for a formula; a number stays as it is."""
    # Most have no line breaks, nor anything else that is not seen: then only the beginning counts.
    if text[:1] not in _FIRST and text.isprintable():
        return text
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub("'", text)


def restored(text: str) -> str:
    """Read what `defused` wrote; a text that it never wrote stays as it is, unless it looks like one."""
    return _DEFUSED.sub("", text) if "'" in text else text
