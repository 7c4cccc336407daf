"""Rows of lists: plain lines, CSV, TSV, JSON lines and Parquet, as streams of columns of a thousand rows or so.

Nothing is guessed: what does not fit is refused with its line. A line has 1 MiB at most, so that memory stays flat.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import Any, NoReturn, TypeAlias

import pydantic_core

from producer.input.packing import pieces
from producer.input.reading import BATCH, Reading, quoted
from producer.input.rows import PLAIN, Columns, Maker, Rows, text_of, uri_column
from producer.input.stored import Stored
from producer.jobs.errors import UsageError

MAX_LINE_BYTES = 2**20
BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\f\v"
#: The number of the first line, and some whole lines.
Block: TypeAlias = tuple[int, bytes]


def blocks(stored: Stored, packing: str | None) -> Generator[Block, None, None]:
    """Read whole lines, many at once, without the byte order mark."""
    done, rest = 0, b""
    with closing(pieces(stored, packing, lambda: done)) as found:
        for piece in found:
            cut = piece.rfind(b"\n") + 1
            if not cut:
                rest += piece
                if len(rest) > MAX_LINE_BYTES:
                    raise UsageError(f"{stored.name} line {done + 1} is longer than {MAX_LINE_BYTES:,} bytes")
                continue
            block, rest = rest + piece[:cut], piece[cut:]
            yield done + 1, block if done else block.removeprefix(BOM)
            done += block.count(b"\n")
    if rest:
        yield done + 1, rest if done else rest.removeprefix(BOM)


def _decoded(block: Block, name: str) -> str:
    first, text = block
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} line {first + text.count(bytes([10]), 0, error.start)} is no UTF-8 text") from None


def text_rows(found: Iterator[Block], name: str) -> Generator[Rows, None, None]:
    """Read an address or a path a line."""
    for block in found:
        first, text = block[0], _decoded(block, name)
        lines = (text.replace("\r\n", "\n") if "\r" in text else text).split("\n")
        if not lines[-1]:
            lines.pop()
        if all(map(PLAIN, lines)):
            yield Rows(lines, first.__add__, plain=True)
            continue
        stripped = [line.strip(_BLANK) for line in lines]
        numbers = [number for number, line in enumerate(stripped, first) if line and line[0] != "#"]
        if numbers:
            yield Rows([stripped[number - first] for number in numbers], numbers.__getitem__)


def csv_rows(
    found: Iterator[Block], name: str, delimiter: str, reading: Reading, unseen: set[str]
) -> Generator[Rows, None, None]:
    """Read rows of cells below a header."""
    lines = chain.from_iterable(io.StringIO(_decoded(block, name)) for block in found)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)

    def taken(count: int) -> tuple[int, list[list[str]]]:
        before = reader.line_num
        try:
            return before, list(islice(reader, count))
        except csv.Error as error:
            raise UsageError(f"{name} line {reader.line_num}: {error}") from None

    header: list[str] = []
    while not header:
        _, rows = taken(1)
        if not rows:
            return
        header = [cell.strip() for cell in rows[0]]
    columns = Columns.find(header, reading, name)
    unseen.clear()
    places = {column: header.index(column) for column in columns.all}
    keep = [(column, places[column]) for column in columns.keep]
    while True:
        before, rows = taken(BATCH)
        if not rows:
            return
        number: Callable[[int], int] = partial(_line_of, rows, before)
        if set(map(len, rows)) != {len(header)}:
            rows, number = _of_equal_width(rows, number, len(header), name)
        yield Rows(
            [row[places[columns.uri]] for row in rows],
            number,
            classes=[row[places[columns.classes]] for row in rows] if columns.classes else None,
            ids=[row[places[columns.ids]] for row in rows] if columns.ids else None,
            keep=partial(_kept_cells, rows, keep) if keep else None,
        )


def _kept_cells(rows: list[list[str]], keep: list[tuple[str, int]]) -> list[dict[str, str]]:
    return [{column: row[place] for column, place in keep} for row in rows]


def _line_of(rows: list[list[str]], before: int, place: int) -> int:
    """The line at which a row begins: cells may hold line breaks."""
    return before + 1 + sum(1 + sum(cell.count("\n") for cell in row) for row in rows[:place])


def _of_equal_width(
    rows: list[list[str]], number: Callable[[int], int], width: int, name: str
) -> tuple[list[list[str]], Callable[[int], int]]:
    """Leave blank lines out, and refuse rows that have more or fewer cells than the header."""
    places = [place for place, row in enumerate(rows) if row]
    for place in places:
        if len(rows[place]) != width:
            raise UsageError(
                f"{name} line {number(place)} has {len(rows[place])} cells where the header has {width}: "
                "write cells that hold the delimiter or line breaks in quotes"
            )
    return [rows[place] for place in places], lambda place: number(places[place])


def json_rows(found: Iterator[Block], maker: Maker, reading: Reading, unseen: set[str]) -> Generator[Rows, None, None]:
    """Read an object a line; what was seen of the columns is taken out of `unseen`."""
    parse = partial(pydantic_core.from_json, cache_strings="keys")
    uri = None
    for first, block in found:
        lines = block.split(b"\n")
        number: Callable[[int], int] = first.__add__
        try:
            rows = list(map(parse, lines))
        except ValueError:
            places = [place for place, line in enumerate(lines) if line.strip()]
            rows = [_parsed(lines[place], first + place, maker, parse) for place in places]
            number = [first + place for place in places].__getitem__
        if not rows:
            continue
        if uri is None and isinstance(rows[0], dict):
            uri = uri_column(list(rows[0]), reading, maker.name)
        try:
            uris = [row[uri] for row in rows]
        except (KeyError, TypeError):
            uris = []
        if set(map(type, uris)) != {str}:
            _blame(rows, number, maker, str(uri))
        yield Rows(
            uris,
            number,
            classes=[row.get(reading.class_column) for row in rows] if reading.class_column else None,
            ids=[row.get(reading.id_column) for row in rows] if reading.id_column else None,
            keep=partial(_kept_values, rows, reading.keep_columns) if reading.keep_columns else None,
        )
        unseen.difference_update([name for name in unseen if any(name in row for row in rows)])


def _parsed(line: bytes, number: int, maker: Maker, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(line)
    except ValueError as error:
        try:
            line.decode()
        except UnicodeDecodeError:
            raise maker.wrong(number, "it is no UTF-8 text") from None
        why = str(error).replace("at line 1 column", "at column")
        raise maker.wrong(number, f"it is no JSON object ({why})") from None


def _blame(rows: list[Any], number: Callable[[int], int], maker: Maker, uri: str) -> NoReturn:
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise maker.wrong(number(place), "it is no JSON object")
        if not isinstance(row.get(uri), str):
            raise maker.wrong(number(place), f"there is no text in {quoted(uri)}")
    raise AssertionError("one of the rows cannot be used")


def _kept_values(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        {
            name: value if type(value) is str else str(text_of(value))
            for name in names
            if (value := row.get(name)) is not None
        }
        for row in rows
    ]


def parquet_rows(stored: Stored, maker: Maker, reading: Reading, unseen: set[str]) -> Generator[Rows, None, None]:
    """Read the rows of a Parquet file, only the columns that are needed."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{maker.name} cannot be read: Parquet needs pyarrow (pip install 'gradcam-queue[parquet]')"
        ) from None
    done = 0
    with stored.open() as file:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
            columns = Columns.find(table.schema_arrow.names, reading, maker.name)
            _check_type(str(table.schema_arrow.field(columns.uri).type), columns.uri, maker.name)
            unseen.clear()
            for batch in table.iter_batches(batch_size=4 * BATCH, columns=columns.all, use_threads=False):
                cells = {name: batch.column(name).to_pylist() for name in columns.all}
                yield _parquet_rows(cells, columns, (done + 1).__add__, maker)
                done += batch.num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            place = f" after row {done}" if done else ""
            raise UsageError(f"{maker.name} is no Parquet file that can be read{place}: {_in_a_line(error)}") from None


def _parquet_rows(cells: dict[str, list[Any]], columns: Columns, number: Callable[[int], int], maker: Maker) -> Rows:
    uris = cells[columns.uri]
    if None in uris:
        raise maker.wrong(number(uris.index(None)), f"there is nothing in {quoted(columns.uri)}")
    return Rows(
        uris,
        number,
        classes=cells[columns.classes] if columns.classes else None,
        ids=cells[columns.ids] if columns.ids else None,
        keep=partial(_kept_columns, cells, columns.keep) if columns.keep else None,
    )


def _kept_columns(cells: dict[str, list[Any]], names: tuple[str, ...]) -> list[dict[str, str]]:
    rows = zip(*(map(text_of, cells[name]) for name in names), strict=True)
    return [{name: text for name, text in zip(names, row, strict=True) if text is not None} for row in rows]


def _check_type(kind: str, column: str, name: str) -> None:
    if kind not in {"string", "large_string", "string_view"} and not kind.startswith("dictionary<values=string"):
        raise UsageError(f"{name} holds {kind[:100]} in {quoted(column)}: addresses are text")


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
