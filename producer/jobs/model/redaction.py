r"""What may be shown of an address: only what is known to be harmless, in every log, record, table, summary and error.

    part of the address                          shown
    ───────────────────────────────────────────  ────────────────────────────────────────────────────────────────────
    user name and password, however spelled      never: http://***@host/a.jpg; also http:user@host, http://user\@host,
                                                 %40, wide signs and slashes, tabs and line ends, a port that is no
                                                 number, an address within the path
    query                                        parameters of `_HARMLESS` whose values look as they should; of all
                                                 others neither name nor value: https://host/a.jpg?w=200&***
    parameters in the path: ;name=value, &name=value, also behind %3B, %26, %3F, %23   the same
    fragment of a web address                    never; it is not sent either
    a segment of a web address's path            shown, as most long ones are digests or file names; but for tokens
                                                 that say what they are (JSON Web Tokens, and addresses in Base64), and
                                                 values: /token=abc/ is /***/, /year=2024/ is shown
    key of s3://, path of file://                shown, as they are names; but for ?name=value, ;name=value,
                                                 &name=value and #name=value behind them
    host and port                                shown, if they are a host and a port
    data:                                        never

Presigned addresses of S3 (versions 2 and 4), Google and Azure, and keys of CDNs need no rule: nobody has to know what a
secret is called. What is hidden is `***`; several hidden parameters in a row are one. Redacting what was redacted
changes nothing. Line ends and tabs are left out, as browsers do; other control characters are U+FFFD.

The time it takes is proportional to the length of the address.
"""

from __future__ import annotations

import re
from typing import Final

#: Stands for what is hidden.
HIDDEN: Final = "***"
# Marks that reorder text would let one address look like another in a log.
UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

_SIZE: Final = re.compile(r"\d{1,5}(?:\.\d{1,3})?(?:x\d{1,5})?(?:px)?")
_COUNT: Final = re.compile(r"\d{1,12}")
_VERSION: Final = re.compile(r"v?\d{1,10}(?:\.\d{1,5}){0,3}")
_FORMAT: Final = re.compile(r"(?:jpe?g|png|webp|gif|bmp|tiff?|avif|auto)", re.IGNORECASE)
_FIT: Final = re.compile(r"(?:clip|contain|cover|crop|fill|fit|inside|max|min|outside|pad|scale)")
_NAMED_SIZE: Final = re.compile(rf"{_SIZE.pattern}|thumb(?:nail)?|small|medium|large|original|full")
#: Parameters that may be shown, in lower case, and what their values look like: a secret in one of them is hidden.
_HARMLESS: Final[dict[str, re.Pattern[str]]] = {
    **dict.fromkeys(("w", "h", "width", "height", "dpr", "q", "quality"), _SIZE),
    "size": _NAMED_SIZE,
    **dict.fromkeys(("page", "frame", "index", "id"), _COUNT),
    **dict.fromkeys(("v", "ver", "version"), _VERSION),
    **dict.fromkeys(("format", "fm", "ext"), _FORMAT),
    **dict.fromkeys(("fit", "mode"), _FIT),
}

#: Signs that other programs take for one of ours, once they have normalized an address (NFKC).
_ALIKE: Final = {
    "@": "\uff20\ufe6b",
    "/": "\uff0f\u2044\u2215\u29f8",
    "\\": "\uff3c\ufe68\u29f5\u2216",
    ":": "\uff1a\ufe55\u2236\ua789",
    "?": "\uff1f\ufe56",
    "#": "\uff03\ufe5f",
    ";": "\uff1b\ufe54\u037e",
    "&": "\uff06\ufe60",
    "=": "\uff1d\ufe66",
}


def _spelled(signs: str) -> str:
    """A pattern for signs as they are, their likes, and either percent-encoded, once or several times."""
    likes = [like for sign in signs for like in (sign, *_ALIKE[sign])]
    encoded = ["".join(f"%(?:25)*{byte:02X}" for byte in like.encode()) for like in likes]
    return f"(?i:[{re.escape(''.join(likes))}]|{'|'.join(encoded)})"


_AT, _SLASH, _COLON, _EQUALS = _spelled("@"), _spelled("/\\"), _spelled(":"), _spelled("=")
#: Nearly all addresses: nothing in them needs a second look, but for the query of a web address.
_PLAIN: Final = re.compile(
    r"(?!\S*(?:eyJ|aHR0c))"
    r"(?:(?:s3|file)://[A-Za-z0-9._-]*(?:/[A-Za-z0-9._~/+!,-]*)?"
    r"|(https?://[A-Za-z0-9._-]+(?::\d{1,5})?(?:/[A-Za-z0-9._~/+!,-]*)?)(?:\?([^#]*)(?:#.*)?)?)",
    re.ASCII | re.DOTALL,
)
#: What is longer is no address, and hidden whole.
_LONGEST: Final = 2**16
_BEGIN: Final = re.compile(rf"[\x00-\x20]*(?:([A-Za-z][A-Za-z0-9+.-]{{0,30}}){_COLON})?((?:{_SLASH})*)")
_SLASHES: Final = re.compile(_SLASH)
_SCHEMES: Final = frozenset(
    (
        *("http", "https", "s3", "s3a", "s3n", "file", "ftp", "ftps", "sftp", "gs", "gcs", "az", "abfs", "abfss"),
        *("wasb", "wasbs", "ws", "wss", "data", "redis", "rediss", "mailto"),
    )
)
#: What stands behind these is a name in a store or on a disk, not the target of a request.
_OF_NAMES: Final = frozenset({"s3", "s3a", "s3n", "file", "gs", "gcs"})
_LAST_AT: Final = re.compile(rf".*{_AT}", re.DOTALL)
_A_COLON: Final = re.compile(_COLON)
_PLACE: Final = re.compile(
    rf"(?:\[[0-9A-Fa-f:.%a-z]*\]|((?:(?!{_spelled('@/:?#;&=')})[^\s%\[\]<>\"|^{{}}`\\])*))(:\d{{0,5}})?"
)
#: JSON Web Tokens, and addresses within the path in Base64, begin so.
_TOKEN: Final = re.compile(r"(?:eyJ|aHR0c)[A-Za-z0-9_=+.-]*")
_PLAIN_VALUE: Final = re.compile(r"[\w.-]{1,30}=\d{1,4}(?:[-._]?\d{1,4}){0,4}", re.ASCII)
#: `;` and `?` begin parameters; `&` and `#`, which names of files have, do where a value follows.
_IN_PATH: Final = re.compile(rf"({_spelled(';?')}|{_spelled('&#')})", re.DOTALL)
_ALWAYS: Final = re.compile(_spelled(";?"))
_HAS_VALUE: Final = re.compile(_EQUALS)
_MARK: Final = re.compile("[?\uff1f\ufe56]")
_BETWEEN: Final = re.compile("[&;]")
_FRAGMENT: Final = re.compile("[#\uff03\ufe5f]")
_REST_OF_A_NAME: Final = re.compile(r"(?:\.[A-Za-z0-9]{1,5}){0,2}")
#: A word of a text that may be an address, from its scheme on.
_SCHEME_IN_WORD: Final = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]{{0,30}}{_COLON}(?:{_SLASH}){{2}}")
_SUSPECT: Final = re.compile(f"{_AT}|{_COLON}{_SLASH}")
_PARAMETER: Final = re.compile(rf"{_spelled('?;&')}[^=]{{1,60}}{_EQUALS}")
_LEFT_OUT: Final = dict.fromkeys(map(ord, "\t\r\n"))
#: In the place of a character that cannot be shown; a ? would begin a query.
_STRANGE: Final = "\ufffd"
#: Slashes behind a scheme.
_TWO: Final = 2
#: Redis tells the arguments of a command that it does not know; those of AUTH are a password.
_ARGUMENTS: Final = re.compile(r"(with args beginning with:).*", re.IGNORECASE | re.DOTALL)


def redact(uri: str) -> str:
    """Return an address as it may be shown: see the table above. Any string is taken, also one that is no address."""
    if len(uri) > _LONGEST:
        return HIDDEN
    if plain := _PLAIN.fullmatch(uri):
        return UNPRINTABLE.sub(_STRANGE, f"{plain[1]}?{_query(plain[2])}") if plain[2] is not None else plain[1] or uri
    text = uri.translate(_LEFT_OUT)
    begin = _BEGIN.match(text)
    scheme, slashes = ((begin[1] or "").lower(), begin[2]) if begin else ("", "")
    if begin is None or (scheme not in _SCHEMES and len(_SLASHES.findall(slashes)) < _TWO):
        return UNPRINTABLE.sub(_STRANGE, _without_scheme(text))
    if scheme == "data":
        return f"data:{HIDDEN}"
    of_names = scheme in _OF_NAMES
    # Behind `file://` a third slash is the path's first.
    end = begin.start(2) + _TWO if scheme == "file" and slashes.startswith("//") else begin.end()
    return UNPRINTABLE.sub(_STRANGE, text[:end].lstrip() + _behind_scheme(text[end:], of_names=of_names))


def hides(uri: str) -> bool:
    """Whether something is missing in an address that was redacted: nothing can be fetched from it any more."""
    return HIDDEN in uri


def redact_text(text: str) -> str:
    """Return a text with each address in it as it may be shown, and without arguments of Redis' commands."""
    return re.sub(r"\S+", lambda word: _word(word[0]), _ARGUMENTS.sub(rf"\1 {HIDDEN}", text))


def _word(word: str) -> str:
    if len(word) > _LONGEST:
        return HIDDEN
    if not _SUSPECT.search(word) and not _PARAMETER.search(word):
        return word
    found = _SCHEME_IN_WORD.search(word)
    start = found.start() if found else len(word) - len(word.lstrip("\"'`([{<=,:;@"))
    return word[:start] + redact(word[start:])


def _without_scheme(text: str) -> str:
    """A path, half of an address, or anything."""
    fragment = _FRAGMENT.search(text)
    if fragment and _HAS_VALUE.search(text, fragment.end()):
        text = text[: fragment.end()] + HIDDEN
    found = _LAST_AT.match(text)
    if found and not text.startswith("/"):
        text = f"{HIDDEN}@{text[found.end() :]}"
    return _of_web(text)


def _behind_scheme(rest: str, *, of_names: bool) -> str:
    end = next((at for at, char in enumerate(rest) if char in "/?#"), len(rest))
    authority, behind = rest[:end], rest[end:]
    if found := _LAST_AT.match(authority):
        authority = f"{HIDDEN}@{_place(authority[found.end() :])}"
    elif not _PLACE.fullmatch(authority) and (found := _LAST_AT.match(rest)):
        # A password with a slash in it: where it ends can only be guessed.
        return f"{HIDDEN}@{_of_web(rest[found.end() :])}"
    else:
        authority = _place(authority)
    return authority + (_of_names(behind) if of_names else _of_web(_FRAGMENT.split(behind, maxsplit=1)[0]))


def _place(text: str) -> str:
    """Host and port; a port that is none may be a password."""
    if _PLACE.fullmatch(text):
        return text
    found = _PLACE.match(text)
    return f"{found[1]}:{HIDDEN}" if found and found[1] and text[found.end(1) :].startswith(":") else HIDDEN


def _of_web(text: str) -> str:
    """Path and query."""
    query = _MARK.search(text)
    path = text if query is None else text[: query.start()]
    shown, before = [], "x"
    for number, segment in enumerate(path.split("/")):
        shown.append(_segment(segment, of_an_address=not before and number > 1))
        before = segment
    return "/".join(shown) + ("" if query is None else query[0] + _query(text[query.end() :]))


def _segment(text: str, *, of_an_address: bool) -> str:
    """A part of a path; behind an empty one it may be the host of an address within the path."""
    found = _LAST_AT.match(text)
    if found and (of_an_address or _A_COLON.search(text, 0, found.end())):
        text = f"{HIDDEN}@{text[found.end() :]}"
    first, *pieces = _IN_PATH.split(text)
    if _TOKEN.fullmatch(first) or (_has_value(first) and not _PLAIN_VALUE.fullmatch(first)):
        harmless = all(map(_is_harmless, first.split(",")))
        first = first if harmless else HIDDEN
    return first + _pieces(pieces)


def _pieces(pieces: list[str]) -> str:
    """What stands behind the first sign of parameters in a segment: sign, text and so on."""
    shown, parameters = "", False
    for sign, text in zip(pieces[::2], pieces[1::2], strict=True):
        parameters = parameters or bool(_ALWAYS.fullmatch(sign)) or _has_value(text)
        if not parameters or _is_harmless(text) or _REST_OF_A_NAME.fullmatch(text):
            shown += sign + text
        elif not shown.endswith(HIDDEN):
            shown += sign + HIDDEN
    return shown


def _of_names(text: str) -> str:
    """The key of an object, or the path of a file: parameters only where they have a value."""
    first, *pieces = _IN_PATH.split(text)
    shown = first
    for sign, piece in zip(pieces[::2], pieces[1::2], strict=True):
        name, slash, behind = piece.partition("/")
        if not _has_value(name) or _is_harmless(name):
            shown += sign + piece
        else:
            shown += sign + HIDDEN + slash + behind
    return shown


def _query(text: str) -> str:
    shown: list[str] = []
    for part in _BETWEEN.split(text):
        if part and _is_harmless(part):
            shown.append(part)
        elif part and shown[-1:] != [HIDDEN]:
            shown.append(HIDDEN)
    return "&".join(shown)


def _has_value(text: str) -> bool:
    found = _HAS_VALUE.search(text)
    # What ends in = is Base64 in its last place.
    return found is not None and bool(text[found.end() :].strip("="))


def _is_harmless(text: str) -> bool:
    name, _, value = text.partition("=")
    looks = _HARMLESS.get(name.lower())
    return looks is not None and looks.fullmatch(value) is not None
