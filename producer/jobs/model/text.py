r"""Texts of strangers, as a terminal, a log, an error, Redis and a page may show them.

Tensors, classes, files, columns, hosts and jobs are called by somebody else, and errors of libraries quote them.

| in a text                                                     | becomes                                          |
|---------------------------------------------------------------|--------------------------------------------------|
| printable characters of any script, emoji, spaces of any width | themselves                                      |
| control characters of C0 and C1 (ANSI's escapes begin with    | `\x1b`, `\n`, `\x9b`                             |
| one), ends of lines and paragraphs                            |                                                  |
| marks that turn the direction of text, what has no width, tag | `\u202e`, `\u200b`, `\U000e0041`                 |
| characters, selectors of variants                             |                                                  |
| halves of characters, private and unassigned ones             | `\ud800`; unassigned ones of emoji's blocks stay |
| a joiner between two letters or emoji, or behind a virama; the | themselves                                      |
| selector behind an emoji                                      |                                                  |
| marks (accents, vowel signs) behind a letter                  | themselves, the seventh of one letter `\u0301`   |
| more than `limit` characters                                  | `its beginning…(1,048,576 characters)…its end`   |

A backslash stays itself: what was shown is shown again as it is. Which characters are assigned says Python's own table.
Formats for programs keep the data: `in_json` writes the same characters as JSON's own escapes, and shortens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from unicodedata import category, combining

#: A name, an address, a value.
NAME_CHARS: Final = 200
#: A sentence, which may hold several of them: an error's text, a failure's, a problem's.
SENTENCE_CHARS: Final = 1000
#: A line on a terminal or in a log. Lines of several processes stay whole in a pipe only while they are short.
LINE_CHARS: Final = 2000
#: What is shown of several lines, such as a traceback.
LINES: Final = 100

#: More marks than any script puts on one letter (Tibetan, Hebrew with cantillation) would run over the lines around.
_MOST_MARKS: Final = 6
_VIRAMA: Final = 9
_ZWNJ, _ZWJ = "\u200c", "\u200d"
_TEXT_LOOK, _EMOJI_LOOK = "\ufe0e", "\ufe0f"
_KEYCAP: Final = "\u20e3"
#: Letters and marks that nobody sees.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
#: Blocks of emoji: each year has some that Python's table does not know yet.
_EMOJI_BLOCKS: Final = re.compile("[\U0001f000-\U0001faff]")
#: What JSON is looked through for: neither printable ASCII nor a letter; lines end where they end.
_UNSURE: Final = re.compile(rf"[^\x20-\x7e\n\w]|{_INVISIBLE.pattern}")
#: What most texts are made of: nothing in them needs a look at its neighbors.
_PLAIN: Final = re.compile(r"[\x20-\x7e\w…]*")
_LEAST_ROOM: Final = 16


def shown(text: object, limit: int = NAME_CHARS) -> str:
    """Give a text as it may be shown: on one line, moving and reordering nothing around it, and of bounded length.

    Args:
        text: Any; what is no text is made one.
        limit: The most characters that come back, of at most 4 bytes of UTF-8 each; 1 or more.

    Returns:
        The text itself where it is short and printable. Shown again, it stays as it is.
    """
    said = text if isinstance(text, str) else str(text)
    if len(said) <= limit:
        if said.isascii() and said.isprintable():
            return said
        if _PLAIN.fullmatch(said) and not _INVISIBLE.search(said):
            return said
        whole = "".join(_pieces(said))
        if len(whole) <= limit:
            return whole
    return _shortened(said, limit)


def quoted(text: object, limit: int = NAME_CHARS) -> str:
    """Give what somebody wrote in quotation marks, as a sentence may show it; the marks come on top of the limit."""
    said = shown(text, limit)
    mark = '"' if "'" in said and '"' not in said else "'"
    return f"{mark}{said}{mark}"


def counted(count: int, noun: str, several: str = "") -> str:
    """Give a number with its noun: `1 image`, `2 images`, `1,000 images`.

    Args:
        count: How many.
        noun: Of one, behind whatever describes it: `failed image`.
        several: Of more than one, where that is not the same with an s.
    """
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def lines(text: object, most: int = LINES) -> str:
    """Give a text of several lines, each as `shown`: the first ones and the last ones where there are more."""
    all_of_them = str(text).split("\n")
    if len(all_of_them) > most:
        half = most // 2
        left_out = len(all_of_them) - 2 * half
        all_of_them = [*all_of_them[:half], f"…({left_out:,} lines more)…", *all_of_them[-half:]]
    return "\n".join(shown(line.expandtabs(4), LINE_CHARS) for line in all_of_them)


def in_json(line: str) -> str:
    r"""Give JSON whose texts do nothing to a terminal: what `shown` escapes stands as `\u202e`, the data is the same.

    Args:
        line: Valid JSON; its ends of lines and indents stay.
    """
    return _UNSURE.sub(_in_json, line)


def _pieces(text: str) -> list[str]:
    """Each character of a text as it is shown."""
    pieces: list[str] = []
    before, marks = "", 0
    for at, char in enumerate(text):
        after = text[at + 1 : at + 2]
        kind = category(char) if not char.isascii() else "L" if char.isprintable() else "C"
        is_mark = kind in {"Mn", "Me"}
        marks = marks + 1 if is_mark else 0
        if char.isascii():
            is_kept = kind == "L"
        elif char in {_ZWNJ, _ZWJ}:
            is_kept = _joins(before, after)
        elif char in {_TEXT_LOOK, _EMOJI_LOOK}:
            is_kept = _has_looks(before, after)
        else:
            is_kept = _is_seen(char) and (not is_mark or (marks <= _MOST_MARKS and _takes_marks(before)))
        pieces.append(char if is_kept else char.encode("unicode_escape").decode())
        # What was escaped is no letter that anything could stand on.
        before = char if is_kept else ""
    return pieces


def _is_seen(char: str) -> bool:
    kind = category(char)
    return (
        (kind[0] != "C" and kind not in {"Zl", "Zp"}) or (kind == "Cn" and _EMOJI_BLOCKS.match(char) is not None)
    ) and not _INVISIBLE.match(char)


def _joins(before: str, after: str) -> bool:
    if not before or before.isascii():
        return False
    if combining(before) == _VIRAMA:
        return True
    left, right = category(before), category(after) if after else "C"
    return (
        (left[0] in "LM" or left in {"So", "Sk", "Cn"} or before == _EMOJI_LOOK)
        and not after.isascii()
        and (right[0] == "L" or right == "So")
        and _is_seen(after)
    )


def _has_looks(before: str, after: str) -> bool:
    if before.isascii():
        return before != "" and before in "#*0123456789" and after == _KEYCAP
    return category(before)[0] in "SP"


def _takes_marks(before: str) -> bool:
    return before != "" and (before.isalnum() or category(before)[0] in "MS" or before in {_EMOJI_LOOK, _ZWNJ, _ZWJ})


def _shortened(text: str, limit: int) -> str:
    between = f"…({len(text):,} characters)…"
    room = limit - len(between)
    if room < _LEAST_ROOM:
        between, room = "…", limit - 1
    end_chars = room // 3
    head = "".join(_as_many(_pieces(text[:limit]), room - end_chars))
    # What stands at the cut joins nothing any more.
    head = head.rstrip(_ZWNJ + _ZWJ)
    tail = list(_as_many(reversed(_pieces(text[-limit:])), end_chars))
    while tail and not tail[-1].isascii() and category(tail[-1])[0] in "MC":
        tail.pop()
    return head + between + "".join(reversed(tail))


def _as_many(pieces: Iterable[str], room: int) -> Iterable[str]:
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            return
        yield piece


def _in_json(found: re.Match[str]) -> str:
    char = found[0]
    if _is_seen(char):
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def split_commas(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
