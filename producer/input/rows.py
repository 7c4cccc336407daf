"""Rows of a list become sources: the address is checked, the class is read, the rest is carried along.

Millions of rows pass through here, so whole columns are looked at together, and row by row only where something in
them is unusual.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeGuard, cast

from producer.input.display import named
from producer.input.source import Source, check_image
from producer.jobs.fetch import addresses
from producer.jobs.model.errors import FetchError, UsageError
from producer.jobs.model.text import quoted, shown

MAX_ID_CHARS, MAX_CLASS_CHARS = 1024, 200
#: The longest cell that is carried along; cells nobody asked for may be longer.
MAX_CELL_CHARS = 2**20
_WHOLE_FLOAT = re.compile(r"[0-9]+\.0*")
_CLASS_IDS = 2**31
_SURROGATES = re.compile("[\ud800-\udfff]")

#: Matches addresses that are harmless at a glance, nearly all there are: `addresses.parse` accepts each of them (a test
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


def nowhere(_place: int) -> str:
    """The text of a row that is not text in its list."""
    return ""


@dataclass(slots=True)
class Rows:
    """Some rows of a list that follow each other, column by column."""

    #: An address or a path each.
    uris: Sequence[str]
    #: From a row's place here to its number in the list.
    number: Callable[[int], int]
    #: Known to be matched by `PLAIN`; `Maker.wrong` finds it out.
    plain: bool = False
    classes: Sequence[object] | None = None
    ids: Sequence[object] | None = None
    labels: Sequence[object] | None = None
    #: Columns that are carried along.
    keep: Mapping[str, Sequence[object]] | None = None
    #: Rows that could not be read as such, by their place, and why; nothing is in their cells.
    broken: Mapping[int, str] = field(default_factory=dict)
    #: Some of the bytes were no UTF-8, or half a character: lone surrogates stand for them in the text.
    ragged: bool = False
    #: From a row's place here to how it stands in the list.
    raw: Callable[[int], str] = nowhere

    def first(self, count: int) -> Rows:
        """Give the first of them."""
        if count >= len(self.uris):
            return self
        broken = {place: why for place, why in self.broken.items() if place < count}
        return replace(self._only(itemgetter(slice(count))), broken=broken)

    def without(self, places: Collection[int]) -> Rows:
        """Give those that are left; which were broken is not known any more."""
        kept = [place for place in range(len(self.uris)) if place not in places]
        rows = self._only(lambda cells: [cells[place] for place in kept])
        return replace(rows, broken={}, number=lambda place: self.number(kept[place]), raw=nowhere)

    def _only(self, take: Callable[[Any], Sequence[Any]]) -> Rows:
        return replace(
            self,
            uris=take(self.uris),
            classes=self.classes and take(self.classes),
            ids=self.ids and take(self.ids),
            labels=self.labels and take(self.labels),
            keep=self.keep and {name: take(cells) for name, cells in self.keep.items()},
        )


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes sources of a list's rows. White space around a cell never counts."""

    #: What the list is called in messages.
    name: str
    #: The folder that relative paths begin at; none where paths mean nothing: the list is not of this machine.
    base: str | None
    #: What a row is called in messages.
    row: str = "line"
    #: The folder in which files are taken, resolved; empty: in none; None: in any.
    inside: str | None = None

    def wrong(self, rows: Rows) -> dict[int, str]:
        """Look which rows cannot be used, local files included: their places, and why."""
        wrong = dict(rows.broken)
        for place, why in chain(
            self._wrong_addresses(rows),
            _wrong_cells(rows.classes, class_of),
            _wrong_cells(rows.labels, label_of),
            _wrong_cells(None if rows.ids is None or _short(rows.ids, MAX_ID_CHARS) else rows.ids, id_of),
            *(_wrong_kept(name, cells) for name, cells in (rows.keep or {}).items()),
            _ragged(rows) if rows.ragged else (),
        ):
            wrong.setdefault(place, why)
        return wrong

    def error(self, number: int, why: str) -> UsageError:
        """Make the error for a row."""
        return UsageError(f"{self.name} {self.row} {number}: {why}")

    def make(self, rows: Rows) -> list[Source]:
        """Make the sources of rows with nothing wrong; whether local files are still there is seen at their upload."""
        addresses, paths = self._places(rows)
        class_ids, class_names = _classes(rows)
        labels: Iterable[str | None] = repeat(None) if rows.labels is None else map(label_of, rows.labels)
        made = zip(addresses, paths, _ids(rows.ids), class_ids, class_names, _kept(rows.keep), labels, strict=False)
        return list(map(Source._make, made))

    def address(self, text: str) -> str:
        """What a cell names, so that it means the same in a list that lies elsewhere."""
        text = text.strip()
        if not text or "://" in text or self.base is None:
            return text
        return os.path.abspath(self._path(text))

    def _wrong_addresses(self, rows: Rows) -> Iterator[tuple[int, str]]:
        rows.plain = rows.plain or all(map(PLAIN, rows.uris))
        if rows.plain:
            return
        folders: dict[str, str] = {}
        for place, cell in enumerate(rows.uris):
            if PLAIN(text := cell.strip()) or place in rows.broken:
                continue
            try:
                if _SURROGATES.search(text):
                    yield place, "it is no UTF-8 text"
                elif "://" in text:
                    check_address(text)
                else:
                    path = self._path(text)
                    self._check_place(path, text, folders)
                    _check_file(path, text)
            except UsageError as error:
                yield place, str(error)

    def _places(self, rows: Rows) -> tuple[Iterable[str | None], Iterable[Path | None]]:
        if rows.plain or all(map(PLAIN, rows.uris)):
            return rows.uris, repeat(None)
        addresses: list[str | None] = [text.strip() for text in rows.uris]
        paths: list[Path | None] = [None] * len(addresses)
        for place, text in enumerate(addresses):
            if text is not None and "://" not in text:
                addresses[place], paths[place] = None, Path(self._path(text))
        return addresses, paths

    def _check_place(self, path: str, text: str, folders: dict[str, str]) -> None:
        """Refuse a file that whoever wrote the list may not have meant to give away. Raises UsageError.

        Nothing is said of whether it is there. Folders that were resolved are kept: resolving a path takes longer than
        all else that is looked at.
        """
        if self.inside is None:
            return
        if not self.inside:
            raise UsageError(
                f"{quoted(text)} is a file of this machine: give --allow-local if {self.name} may name such"
            )
        try:
            found = _resolved(path, folders)
        except ValueError:
            return  # No file can be called so, as is told next.
        inside = self.inside.rstrip("/")
        if found != self.inside and (not found.startswith(f"{inside}/") or "/." in found[len(inside) :]):
            raise UsageError(
                f"{quoted(text)} is hidden, or lies outside of the folder of the list: give --allow-local if the list "
                "may name any file of this machine"
            )

    def _path(self, text: str) -> str:
        if not text:
            raise UsageError("there is no address")
        if self.base is None:
            raise UsageError(
                f"{quoted(text)} is no address (s3://, http://, https://, file://), and a list that is not on this "
                "machine cannot name files here"
            )
        return os.path.join(self.base, os.path.expanduser(text))


def _resolved(path: str, folders: dict[str, str]) -> str:
    folder, name = os.path.split(path)
    if name in {"", ".", ".."} or os.path.islink(path):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _wrong_cells(cells: Sequence[object] | None, read: Callable[[Any], object]) -> Iterator[tuple[int, str]]:
    if cells is None:
        return
    try:
        deque(map(read, cells), maxlen=0)
    except (UsageError, TypeError):
        for place, cell in enumerate(cells):
            try:
                read(cell)
            except UsageError as error:
                yield place, str(error)
            except TypeError:
                yield place, "the class is neither a number nor a name"


def _wrong_kept(name: str, cells: Sequence[object]) -> Iterator[tuple[int, str]]:
    if _short(cells, MAX_CELL_CHARS):
        return
    for place, cell in enumerate(cells):
        text = text_of(cell)
        if text is not None and len(text) > MAX_CELL_CHARS:
            yield place, f"{quoted(name)} has {len(text):,} characters: the longest cell has {MAX_CELL_CHARS:,}"


def _ragged(rows: Rows) -> Iterator[tuple[int, str]]:
    for cells in (rows.classes or (), rows.ids or (), rows.labels or (), *(rows.keep or {}).values()):
        for place, cell in enumerate(cells):
            if _SURROGATES.search(text_of(cell) or ""):
                yield place, "it is no UTF-8 text"


def _classes(rows: Rows) -> tuple[Iterable[int | None], Iterable[str | None]]:
    if rows.classes is None:
        return repeat(None), repeat(None)
    pairs = list(map(class_of, rows.classes))
    return [number for number, _ in pairs], [name for _, name in pairs]


def _ids(cells: Sequence[object] | None) -> Iterable[str | None]:
    if cells is None:
        return repeat(None)
    return [text or None for text in map(str.strip, cells)] if _is_text(cells) else map(id_of, cells)


def _kept(columns: Mapping[str, Sequence[object]] | None) -> Iterable[dict[str, str] | None]:
    if columns is None:
        return repeat(None)
    names = tuple(columns)
    if all(map(_is_text, columns.values())):
        rows = zip(*(map(str.strip, cells) for cells in cast("Iterable[Sequence[str]]", columns.values())), strict=True)
        if len(names) == 1:
            return [{names[0]: text} for (text,) in rows]
        return [dict(zip(names, row, strict=True)) for row in rows]
    return [
        {name: text for name, text in zip(names, row, strict=True) if text is not None}
        for row in zip(*(map(_kept_text, cells) for cells in columns.values()), strict=True)
    ]


def _kept_text(cell: object) -> str | None:
    text = text_of(cell)
    return text and text.strip()


def _is_text(cells: Sequence[object]) -> TypeGuard[Sequence[str]]:
    return set(map(type, cells)) == {str}


def _short(cells: Sequence[object], most: int) -> bool:
    """Whether all are text of no more than so many characters, which is soon seen."""
    return _is_text(cells) and max(map(len, cells)) <= most


def check_address(text: str) -> None:
    """Make sure that an address is one of an image. Raises UsageError."""
    try:
        address = addresses.parse(text)
    except FetchError as error:
        raise UsageError(str(error)) from None
    if address.scheme == "s3" and text.endswith("/"):
        raise UsageError(f"{address.shown} is a prefix, not an image")


def _check_file(path: str, text: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        what = named(text)
        place = f" ({shown(path)} is not there)" if what == quoted(text) else ""
        raise UsageError(
            f"{what} is neither a file{place} nor an address (s3://, http://, https://, file://)"
        ) from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{shown(path)} is no file: a list names images only")
    check_image(path)


def label_of(cell: object) -> str | None:
    """Read what an image shows, as a class; it is kept as text. Errors as `class_of`."""
    number, name = class_of(cell)
    return name if number is None else str(number)


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
            raise UsageError(f"the class {quoted(text, 40)} is not between 0 and {_CLASS_IDS - 1:,}")
        return int(text), None
    if len(text) > MAX_CLASS_CHARS:
        raise UsageError(f"the class has a name of {len(text):,} characters: the longest has {MAX_CLASS_CHARS}")
    return None, text


def id_of(cell: object) -> str | None:
    """Read what the user calls an image; nothing is none. Raises UsageError when it is too long."""
    text = cell if isinstance(cell, str) else text_of(cell)
    if not text or not (text := text.strip()):
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
