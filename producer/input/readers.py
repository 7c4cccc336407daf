"""Rows of lists: plain lines and JSON lines (others: `tables.py`, `parquet.py`), as streams of columns of many rows.

Nothing is guessed: what does not fit is said of its row. Memory stays flat: a line of a text list has 1 MiB at most, a
row of others 16 MiB, of which the cells that somebody asked for have 1 MiB each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import pydantic_core

from producer.input.columns import Columns, find_column, uri_column
from producer.input.decompression import pieces
from producer.input.read_options import ReadOptions
from producer.input.rows import PLAIN, Maker, Rows, nowhere
from producer.input.spooled import RereadableFile
from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted

MAX_LINE_BYTES = 2**20
#: A row may hold cells that nobody asked for, such as a thumbnail.
MAX_ROW_BYTES = 16 * 2**20
BOM = b"\xef\xbb\xbf"
#: How it begins, in either order of bytes.
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
NO_UTF8 = "it is no UTF-8 text"
#: How JSON writes one half of a character beyond the first 65,536.
_HALF = re.compile(rb"\\u[dD][89abcdefABCDEF]")
#: The number of the first line, and some whole lines.
Block: TypeAlias = tuple[int, bytes]


def blocks(stored: RereadableFile, packing: str | None, longest: int = MAX_ROW_BYTES) -> Generator[Block, None, None]:
    """Read whole lines, many at once, without the byte order mark."""
    done, rest = 0, b""
    with closing(pieces(stored, packing, lambda: done)) as found:
        for piece in found:
            if not done and not rest and piece.startswith(_UTF16):
                raise UsageError(f"{stored.name} is UTF-16 text: save it as UTF-8 (in Excel: CSV UTF-8)")
            cut = piece.rfind(b"\n") + 1
            if not cut:
                rest += piece
                if len(rest) > longest:
                    raise UsageError(f"{stored.name} line {done + 1} is longer than {longest:,} bytes")
                continue
            block, rest = rest + piece[:cut], piece[cut:]
            yield done + 1, block if done else block.removeprefix(BOM)
            done += block.count(b"\n")
    if rest:
        yield done + 1, rest if done else rest.removeprefix(BOM)


def decoded(text: bytes) -> tuple[str, bool]:
    """Text, and whether surrogates stand in it for bytes that are no UTF-8: it may be where nobody looks."""
    try:
        return text.decode(), False
    except UnicodeDecodeError:
        return text.decode("utf-8", "surrogateescape"), True


def text_rows(found: Iterator[Block]) -> Generator[Rows, None, None]:
    """Read an address or a path a line."""
    for first, block in found:
        text, ragged = decoded(block)
        lines = (text.replace("\r\n", "\n") if "\r" in text else text).split("\n")
        if not lines[-1]:
            lines.pop()
        if all(map(PLAIN, lines)):
            yield Rows(lines, first.__add__, plain=True)
            continue
        stripped = [line.strip() for line in lines]
        numbers = [number for number, line in enumerate(stripped, first) if line and line[0] != "#"]
        if numbers:
            wanted = [stripped[number - first] for number in numbers]
            yield Rows(wanted, numbers.__getitem__, ragged=ragged, raw=wanted.__getitem__)


def through(places: Sequence[int], call: Callable[[int], Any]) -> Callable[[int], Any]:
    """Ask of what was picked what can be asked of all."""
    return lambda at: call(places[at])


def json_rows(
    found: Iterator[Block], maker: Maker, reading: ReadOptions, unseen: set[str]
) -> Generator[Rows, None, None]:
    """Read an object a line; what was seen of the columns is taken out of `unseen`."""
    uri: str | None = None
    names: dict[str, str | None] = dict.fromkeys(reading.columns)
    for first, block in found:
        lines = block.removesuffix(b"\n").split(b"\n")
        number: Callable[[int], int] = first.__add__
        broken: dict[int, str] = {}
        ragged = False
        try:
            rows = list(map(_parse, lines))
        except ValueError:
            places = [place for place, line in enumerate(lines) if line.strip()]
            lines, number = [lines[place] for place in places], through(places, number)
            rows = [_parsed(line, at, broken) for at, line in enumerate(lines)]
            ragged = True
        if not rows:
            continue
        if set(map(type, rows)) != {dict}:
            broken = {at: "it is no JSON object" for at, row in enumerate(rows) if type(row) is not dict} | broken
            rows = [row if type(row) is dict else {} for row in rows]
        if None in names.values():
            _find_more(names, rows, maker.name, unseen)
        if uri is None:
            uri = (
                names[reading.uri_column] or reading.uri_column
                if reading.uri_column
                else _uri_of([row for at, row in enumerate(rows) if at not in broken], reading, maker.name)
            )
        columns = Columns(
            uri or "",
            reading.class_column and (names[reading.class_column] or reading.class_column),
            reading.id_column and (names[reading.id_column] or reading.id_column),
            reading.label_column and (names[reading.label_column] or reading.label_column),
            tuple((column, names[column] or column) for column in reading.keep_columns),
        )
        cells = {name: [row.get(name) for row in rows] for name in columns.all}
        uris = cells[columns.uri]
        if set(map(type, uris)) != {str}:
            why = f"there is no text in {quoted(columns.uri)}"
            broken = {at: why for at, cell in enumerate(uris) if not isinstance(cell, str)} | broken
            cells[columns.uri] = ["" if at in broken else cell for at, cell in enumerate(uris)]
        yield rows_of(cells, columns, number, broken, ragged, partial(_line_at, lines))


def _line_at(lines: list[bytes], at: int) -> str:
    return decoded(lines[at])[0]


_parse = partial(pydantic_core.from_json, cache_strings="keys")


def _parsed(line: bytes, at: int, broken: dict[int, str]) -> Any:
    try:
        return _parse(line)
    except ValueError as error:
        why = f"it is no JSON object ({str(error).replace('at line 1 column', 'at column')})"
    # Half a character in a cell that nobody asked for does no harm: Python's own reader lets it pass.
    text, ragged = decoded(line)
    try:
        return json.loads(text) if ragged or _HALF.search(line) else broken.setdefault(at, why)
    except (ValueError, RecursionError):
        return broken.setdefault(at, NO_UTF8 if ragged else why)


def _find_more(names: dict[str, str | None], rows: list[dict[str, Any]], name: str, unseen: set[str]) -> None:
    """Look for columns that no row had so far."""
    there = list(dict.fromkeys(chain.from_iterable(rows)))
    for asked in [asked for asked, found in names.items() if found is None]:
        names[asked] = find_column(asked, there, name)
        if names[asked] is not None:
            unseen.discard(asked)


def _uri_of(rows: list[dict[str, Any]], reading: ReadOptions, name: str) -> str | None:
    """The column of addresses in the first row; where bad rows are skipped, in the first that has one."""
    first: UsageError | None = None
    for row in rows:
        try:
            return uri_column(list(row), name)
        except UsageError as error:
            first = first or error
            if not reading.skip_bad:
                break
    if first is not None:
        raise first
    return None


def rows_of(
    cells: Mapping[str, Sequence[Any]],
    columns: Columns,
    number: Callable[[int], int],
    broken: Mapping[int, str],
    ragged: bool = False,
    raw: Callable[[int], str] = nowhere,
) -> Rows:
    """Put columns where they belong."""
    return Rows(
        cells[columns.uri],
        number,
        classes=cells[columns.classes] if columns.classes else None,
        ids=cells[columns.ids] if columns.ids else None,
        labels=cells[columns.labels] if columns.labels else None,
        keep={column: cells[there] for column, there in columns.keep} if columns.keep else None,
        broken=broken,
        ragged=ragged,
        raw=raw,
    )
