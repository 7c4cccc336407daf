"""Rows of CSV and TSV, as streams of columns: what is held at once are the rows that end in one block of the list."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, takewhile
from operator import itemgetter

from producer.input.columns import Columns, header_hint, separator_hint
from producer.input.read_options import ReadOptions
from producer.input.readers import MAX_ROW_BYTES, NO_UTF8, Block, decoded, rows_of, through
from producer.input.rows import Rows
from producer.jobs.model.errors import UsageError
from producer.jobs.model.formulas import restored


def csv_rows(
    found: Iterator[Block], name: str, delimiter: str, reading: ReadOptions, unseen: set[str]
) -> Generator[Rows, None, None]:
    """Read rows of cells below a header."""
    table = _Table(found, name, delimiter)
    header = table.header()
    if header is None:
        return
    # An address may hold what separates cells elsewhere.
    hint = header_hint(header) or separator_hint(header, delimiter)
    columns = Columns.find(header, reading, name, hint)
    unseen.clear()
    places = {column: header.index(column) for column in columns.all}
    for batch in table.batches():
        rows = batch.rows
        number: Callable[[int], int] = batch.number
        broken = batch.broken
        raw: Callable[[int], str] = batch.raw
        if set(map(len, rows)) != {len(header)}:
            # Blank lines are left out; what has more or fewer cells than the header is in the wrong columns.
            kept = [place for place, row in enumerate(rows) if row]
            width = len(header)
            broken = {
                at: broken.get(place) or _of_other_width(rows[place], width, delimiter)
                for at, place in enumerate(kept)
                if place in broken or len(rows[place]) != width
            }
            number, raw = through(kept, number), through(kept, raw)
            nothing = [""] * width
            rows = [nothing if at in broken else rows[place] for at, place in enumerate(kept)]
        if rows:
            if batch.has_apostrophes:
                rows = [list(map(restored, row)) for row in rows]
            cells = {column: list(map(itemgetter(place), rows)) for column, place in places.items()}
            yield rows_of(cells, columns, number, broken, batch.ragged, raw)


def _of_other_width(row: list[str], width: int, delimiter: str) -> str:
    hint = separator_hint(row, delimiter) if len(row) == 1 else ""
    return (
        f"it has {len(row)} cells where the header has {width}: write cells that hold the delimiter or line breaks "
        f"in quotes{hint}"
    )


class _Batch:
    """Rows of cells that follow each other; blank lines are rows without cells."""

    def __init__(self, first: int) -> None:
        self.rows: list[list[str]] = []
        #: Rows that could not be read as such, by their place; they have one cell, with their line breaks.
        self.broken: dict[int, str] = {}
        #: The blocks they came from: the first line's number, the text, and whether it is ragged.
        self.blocks: list[tuple[int, str, bool]] = []
        self._starts = [first]

    @property
    def ragged(self) -> bool:
        """Whether some of the bytes were no UTF-8."""
        return any(ragged for _, _, ragged in self.blocks)

    @property
    def has_apostrophes(self) -> bool:
        """Whether some cell may be one that was kept from being a formula."""
        return any("'" in text for _, text, _ in self.blocks)

    def number(self, place: int) -> int:
        """The line at which a row begins: cells may hold line breaks."""
        known = self._starts
        for row in self.rows[len(known) - 1 : place]:
            known.append(known[-1] + _lines(row))
        return known[place]

    def raw(self, place: int) -> str:
        """A row as it stands in the list."""
        first = self.number(place) - self.blocks[0][0]
        return "\n".join(self._lines[first : first + _lines(self.rows[place])]).rstrip("\r")

    @cached_property
    def _lines(self) -> list[str]:
        return "".join(text for _, text, _ in self.blocks).split("\n")


def _lines(row: list[str]) -> int:
    return 1 + sum(cell.count("\n") for cell in row)


class _Table:
    """Cells of CSV, block by block: what is held at once are the rows that end in one block.

    Behind each block the reader gets an empty line. Between two rows it makes a row without cells of it, which ends the
    batch; within quotes it makes nothing of it.
    """

    def __init__(self, found: Iterator[Block], name: str, delimiter: str) -> None:
        self._found = found
        self._name = name
        lines = chain.from_iterable(self._parts())
        self._reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        self._blocks, self._at_end = 0, False
        #: The block that is read, and those in which the row that is read began.
        self._held: list[tuple[int, str, bool]] = []

    def header(self) -> list[str] | None:
        """The names of the columns; none where there is nothing at all."""
        row: list[str] = []
        while not row and not self._at_end:
            first = self._line
            with self._long_cells():
                try:
                    row = next(self._reader, [])
                except csv.Error as error:
                    raise self._error(first, _said(error)) from None
        names = [restored(cell.strip()) for cell in row]
        try:
            "".join(names).encode()
        except UnicodeEncodeError:
            raise self._error(first, NO_UTF8) from None
        return names or None

    def batches(self) -> Iterator[_Batch]:
        """The rows below the header."""
        while not self._at_end:
            batch = _Batch(self._line)
            del self._held[:-1]
            fatal = self._fill(batch)
            batch.blocks = self._held[:]
            if any(batch.rows):
                yield batch
            if fatal is not None:
                raise fatal

    def _fill(self, batch: _Batch) -> UsageError | None:
        blocks = self._blocks
        rows = batch.rows
        with self._long_cells():
            while blocks == self._blocks and not self._at_end:
                try:
                    rows.extend(takewhile(len, self._reader))
                    if blocks == self._blocks and not self._at_end:
                        rows.append([])
                except csv.Error as error:
                    begun = batch.number(len(rows))
                    if self._at_end or "field limit" in str(error):
                        return self._error(begun, _said(error))
                    batch.broken[len(rows)] = _said(error)
                    rows.append(["\n" * (self._line - 1 - begun)])
        return None

    @property
    def _line(self) -> int:
        """The number of the line that is read next."""
        return self._reader.line_num - self._blocks + 1

    def _parts(self) -> Iterator[Iterable[str]]:
        for first, block in self._found:
            text, ragged = decoded(block)
            self._held.append((first, text, ragged))
            yield io.StringIO(text)
            self._blocks += 1
            yield ("",)
        self._at_end = True

    def _error(self, line: int, why: str) -> UsageError:
        return UsageError(f"{self._name} line {line}: {why}")

    @contextmanager
    def _long_cells(self) -> Iterator[None]:
        """What the csv module refuses is the same for the whole process: it is put back."""
        before = csv.field_size_limit(MAX_ROW_BYTES)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _said(error: csv.Error) -> str:
    text = str(error).partition(" - ")[0].replace("\t", "\\t")
    if "field limit" in text:
        return f'a cell is longer than {MAX_ROW_BYTES:,} characters: is a quote (") opened that is never closed?'
    return text + (': a quote (") is opened and never closed' if "unexpected end" in text else "")
