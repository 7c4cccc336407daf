"""Rows of a list become sources: the address is checked, the class is read, the rest is carried along.

Millions of rows pass through here, so whole columns are looked at together, and row by row only where something in
them is unusual.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import NoReturn

from producer.input.reading import Reading, Source, check_image, quoted, shown
from producer.jobs import uris
from producer.jobs.errors import FetchError, UsageError

#: What a column of addresses is usually called; the first that exists is taken.
URI_COLUMNS = ("uri", "url", "image", "path", "file", "filename")
MAX_ID_CHARS, MAX_CLASS_CHARS = 1024, 200
_WHOLE_FLOAT = re.compile(r"[0-9]+\.0*")
_CLASS_IDS = 2**31
_COLUMNS_SHOWN = 20

#: Matches addresses that are harmless at a glance, nearly all there are: `uris.parse` accepts each of them (a test
#: draws examples), and takes ten times as long. Possessive repetitions: nothing is tried twice.
PLAIN_ADDRESS = re.compile(
    r"""
      s3://[A-Za-z0-9][A-Za-z0-9._-]{2,62}+(?<![._-])/
      (?: [\x20-~]{1,1024}+(?<![\x20/]) | [^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,256}+(?<![\s/]) )
    | https?://(?:[a-z0-9][a-z0-9-]{0,39}+(?<!-)\.){0,5}+[a-z][a-z0-9-]{0,23}+(?<!-)(?::[1-9][0-9]{0,3}+)?/[!-~]{0,4000}+
    """,
    re.VERBOSE,
)
PLAIN = PLAIN_ADDRESS.fullmatch


@dataclass(slots=True)
class Rows:
    """Some rows of a list that follow each other, column by column."""

    #: An address or a path each.
    uris: list[str]
    #: From a row's place here to its number in the list.
    number: Callable[[int], int]
    #: Known to be matched by `PLAIN`.
    plain: bool = False
    classes: Sequence[object] | None = None
    ids: Sequence[object] | None = None
    #: Makes what is carried along of each; nothing in it can be wrong.
    keep: Callable[[], list[dict[str, str]]] | None = None

    def first(self, count: int) -> Rows:
        """Give the first of them."""
        if count >= len(self.uris):
            return self
        classes, ids = (None if column is None else column[:count] for column in (self.classes, self.ids))
        keep = self.keep
        return Rows(self.uris[:count], self.number, self.plain, classes, ids, keep and (lambda: keep()[:count]))


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read."""

    uri: str
    classes: str | None
    ids: str | None
    keep: tuple[str, ...]

    @classmethod
    def find(cls, there: Sequence[str], reading: Reading, name: str) -> Columns:
        """Find out which columns to read of those that a list has.

        Raises:
            UsageError: One that was named is not there, or is there twice.
        """
        uri = uri_column(there, reading, name)
        for column in (uri, *reading.columns):
            if column not in there:
                raise UsageError(f"{name} has no column {quoted(column)}; {_columns_are(there)}")
            if list(there).count(column) > 1:
                raise UsageError(f"{name} has several columns named {quoted(column)}")
        return cls(uri, reading.class_column, reading.id_column, reading.keep_columns)

    @property
    def all(self) -> list[str]:
        """Every column that is read, once."""
        named = (self.uri, self.classes, self.ids, *self.keep)
        return list(dict.fromkeys(name for name in named if name is not None))


def uri_column(there: Sequence[str], reading: Reading, name: str) -> str:
    """Find the column that holds the addresses. Raises UsageError when none of the usual names is there."""
    if reading.uri_column is not None:
        return reading.uri_column
    for column in URI_COLUMNS:
        if column in there:
            return column
    raise UsageError(
        f"{name} has no column {', '.join(URI_COLUMNS[:-1])} or {URI_COLUMNS[-1]}; {_columns_are(there)}: "
        "say with --uri-column which one holds the addresses"
    )


def _columns_are(there: Sequence[str]) -> str:
    named = [shown(uris.redact(column)) or "''" for column in there[:_COLUMNS_SHOWN]]
    more = f" and {len(there) - _COLUMNS_SHOWN} more" if len(there) > _COLUMNS_SHOWN else ""
    return f"its columns are {', '.join(named)}{more}"[:500]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes sources of a list's rows."""

    #: What the list is called in messages.
    name: str
    #: The folder that relative paths begin at; none where paths mean nothing: the list is not of this machine.
    base: str | None
    #: What a row is called in messages.
    row: str = "line"

    def check(self, rows: Rows) -> None:
        """Make sure that all can be used, local files included. Raises UsageError with the number of the row."""
        self._places(rows, look=True)
        self._classes(rows)
        self._ids(rows)

    def make(self, rows: Rows) -> list[Source]:
        """Make the sources; whether local files are still there is seen when they are uploaded. Errors as `check`."""
        addresses, paths = self._places(rows, look=False)
        class_ids, class_names = self._classes(rows)
        keep = repeat(None) if rows.keep is None else rows.keep()
        made = zip(addresses, paths, self._ids(rows), class_ids, class_names, keep, strict=False)
        return list(map(Source._make, made))

    def wrong(self, number: int, why: object) -> UsageError:
        """Say what is wrong with a row."""
        return UsageError(f"{self.name} {self.row} {number}: {why}")

    def _places(self, rows: Rows, *, look: bool) -> tuple[Iterable[str | None], Iterable[Path | None]]:
        if rows.plain or all(map(PLAIN, rows.uris)):
            return rows.uris, repeat(None)
        addresses: list[str | None] = list(rows.uris)
        paths: list[Path | None] = [None] * len(addresses)
        for place, text in enumerate(rows.uris):
            if PLAIN(text):
                continue
            try:
                if "://" in text:
                    check_address(text)
                    continue
                path = self._path(text)
                if look:
                    _check_file(path, text)
            except UsageError as error:
                raise self.wrong(rows.number(place), error) from None
            addresses[place], paths[place] = None, Path(path)
        return addresses, paths

    def _path(self, text: str) -> str:
        if not text.strip():
            raise UsageError("there is no address")
        if self.base is None:
            raise UsageError(
                f"{quoted(text)} is no address (s3://, http://, https://, file://), and a list that is not on this "
                "machine cannot name files here"
            )
        return os.path.join(self.base, os.path.expanduser(text))

    def _classes(self, rows: Rows) -> tuple[Iterable[int | None], Iterable[str | None]]:
        if rows.classes is None:
            return repeat(None), repeat(None)
        try:
            pairs = list(map(class_of, rows.classes))
        except (UsageError, TypeError):
            self._blame(rows, rows.classes, class_of)
        return [number for number, _ in pairs], [name for _, name in pairs]

    def _ids(self, rows: Rows) -> Iterable[str | None]:
        if rows.ids is None:
            return repeat(None)
        try:
            return list(map(id_of, rows.ids))
        except UsageError:
            self._blame(rows, rows.ids, id_of)

    def _blame(self, rows: Rows, cells: Sequence[object], read: Callable[[object], object]) -> NoReturn:
        for place, cell in enumerate(cells):
            try:
                read(cell)
            except (UsageError, TypeError) as error:
                why = error if isinstance(error, UsageError) else "the class is neither a number nor a name"
                raise self.wrong(rows.number(place), why) from None
        raise AssertionError("one of the cells cannot be read")


def check_address(text: str) -> None:
    """Make sure that an address is one of an image. Raises UsageError."""
    try:
        address = uris.parse(text)
    except FetchError as error:
        raise UsageError(str(error)) from None
    if address.scheme == "s3" and text.endswith("/"):
        raise UsageError(f"{address.shown} is a prefix, not an image")


def _check_file(path: str, text: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        raise UsageError(
            f"{quoted(text)} is neither a file ({shown(path)} is not there) nor an address "
            "(s3://, http://, https://, file://)"
        ) from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{shown(path)} is no file: a list names images only")
    check_image(path)


@lru_cache(maxsize=10_000, typed=True)
def class_of(cell: object) -> tuple[int | None, str | None]:
    """Read a class: digits are its number, other text is its name, nothing is none.

    Raises:
        UsageError: It is too long, too large or no class at all.
        TypeError: It is a list or an object.
    """
    if isinstance(cell, float):
        # Where some are missing, pandas makes numbers of all the others, and writes NaN.
        if cell != cell:  # noqa: PLR0124 - only NaN is not equal to itself
            return None, None
        if not cell.is_integer():
            raise UsageError(f"the class {cell} is no whole number")
        cell = int(cell)
    text = "" if cell is None else str(cell).strip()
    if not text:
        return None, None
    # pandas writes 281.0 as soon as one label is missing.
    if isinstance(cell, str) and _WHOLE_FLOAT.fullmatch(text):
        text = text.partition(".")[0]
    if isinstance(cell, bool | bytes):
        raise UsageError(f"the class {quoted(text)} is neither a number nor a name")
    if isinstance(cell, int) or (text.isascii() and text.isdigit()):
        if not (text.isdigit() and len(text) < MAX_CLASS_CHARS and int(text) < _CLASS_IDS):
            raise UsageError(f"the class {quoted(text)[:40]} is not between 0 and {_CLASS_IDS - 1:,}")
        return int(text), None
    if len(text) > MAX_CLASS_CHARS:
        raise UsageError(f"the class has a name of {len(text):,} characters: the longest has {MAX_CLASS_CHARS}")
    return None, text


def id_of(cell: object) -> str | None:
    """Read what the user calls an image; nothing is none. Raises UsageError when it is too long."""
    text = cell if isinstance(cell, str) else text_of(cell)
    if not text:
        return None
    if len(text) > MAX_ID_CHARS:
        raise UsageError(f"the id has {len(text):,} characters: the longest has {MAX_ID_CHARS:,}")
    return text


def text_of(value: object) -> str | None:
    """Write a value of a JSON or Parquet column as text; none where there is nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
