"""Small mistakes in Lua scripts: a comparison, a write, a state's name, a number, a guard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: What a job may be, and whether more may come; one is taken for the next.
STATES = (
    *("running", "paused", "finalizing", "repairing", "deleting"),
    *("succeeded", "completed_with_errors", "failed", "cancelled"),
)
INGEST = ("open", "closed")
_FLIPPED = {"==": "~=", "~=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "and": "or", "or": "and", "not": ""}
#: Commands that change nothing: a dropped line with one of these alone is no mistake.
_READS = re.compile(r"redis\.call\('(?:H?M?GET|HGETALL|EXISTS|HEXISTS|Z?SCORE|ZRANGE|ZCARD|HLEN|LLEN|SMEMBERS|TIME)'")
_TOKENS = re.compile(
    r"""(?P<comment>--[^\n]*)|(?P<text>'[^'\n]*'|"[^"\n]*")|(?P<number>\b\d+(?:\.\d+)?\b)|(?P<name>[A-Za-z_]\w*)
    |(?P<sign>==|~=|<=|>=|\.\.|[-+*/%^\#<>=(){}\[\];:,.])""",
    re.VERBOSE,
)
#: Behind one of these a call is a part of an expression, not a statement.
_GOES_ON = {"=", ",", "(", "{", "[", "..", "+", "-", "*", "/", "%", "==", "~=", "<", "<=", ">", ">=", "."}
_GOES_ON |= {"return", "and", "or", "not", "in", "function", "local", "if", "while", "until", "for", "elseif", ":"}
_GUARD = re.compile(r"^[ \t]*if [^\n]* then return [^\n]* end$", re.MULTILINE)


class Mutation(NamedTuple):
    """A piece of a text, what is put in its place, and what that is called."""

    start: int
    end: int
    new: str
    what: str


def mutations(text: str) -> Iterator[Mutation]:
    """Every mistake that this module knows to make in a script."""
    tokens = [found for found in _TOKENS.finditer(text) if found.lastgroup != "comment"]
    for at, token in enumerate(tokens):
        word, (start, end) = token[0], token.span()
        if token.lastgroup in {"sign", "name"} and word in _FLIPPED:
            new = _FLIPPED[word]
            yield Mutation(start, end, new, f"`{word}` is `{new}`" if new else f"no `{word}`")
        elif token.lastgroup == "text":
            yield from _another_state(word[1:-1], start + 1, end - 1)
        elif token.lastgroup == "number" and not _is_index(tokens, at):
            new = str(int(word) + 1) if word.isdigit() else str(float(word) + 1)
            yield Mutation(start, end, new, f"{word} is {new}")
        elif token.lastgroup == "name" and (close := _end_of_call(tokens, at)) is not None:
            call = text[start:close]
            if not _READS.match(call):
                yield Mutation(start, close, "", f"no `{' '.join(call.split())[:60]}`")
    for guard in _GUARD.finditer(text):
        yield Mutation(guard.start(), guard.end(), "", f"no `{guard[0].strip()[:60]}`")


def _another_state(word: str, start: int, end: int) -> Iterator[Mutation]:
    for words in (STATES, INGEST):
        if word in words:
            new = words[(words.index(word) + 1) % len(words)]
            yield Mutation(start, end, new, f"'{word}' is '{new}'")


def _is_index(tokens: list[re.Match[str]], at: int) -> bool:
    """KEYS[2] in place of KEYS[1] breaks everything, and shows nothing."""
    return at > 1 and tokens[at - 1][0] == "[" and tokens[at - 2][0] in {"KEYS", "ARGV"}


def _end_of_call(tokens: list[re.Match[str]], at: int) -> int | None:
    """Where a call ends that is a statement; None where no such call begins."""
    if at and tokens[at - 1][0] in _GOES_ON:
        return None
    paren = at + 1
    while paren + 1 < len(tokens) and tokens[paren][0] == ".":
        paren += 2
    if paren >= len(tokens) or tokens[paren][0] != "(":
        return None
    depth = 0
    for token in tokens[paren:]:
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    return None
