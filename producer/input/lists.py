"""Lists of images, told apart by their suffix.

| suffix               | is                                                                                    |
|----------------------|---------------------------------------------------------------------------------------|
| `.txt`               | an address or a path a line; blank lines and those that begin with `#` are skipped    |
| `.csv`, `.tsv`       | a header with names of columns, then a row an image, quoted as spreadsheets do        |
| `.jsonl`, `.ndjson`  | a JSON object a line, an image each                                                   |
| `.parquet`           | a row an image; needs pyarrow                                                         |
| and `.gz` or `.zst`  | the same, compressed                                                                  |

All text is UTF-8, with or without a byte order mark; lines end in LF or CRLF. White space around cells does not count.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

from producer.input.bad_rows import BadRows, bad_row
from producer.input.decompression import DecompressedFile
from producer.input.parquet import parquet_rows
from producer.input.read_options import ReadOptions
from producer.input.readers import BOM, MAX_LINE_BYTES, blocks, json_rows, text_rows
from producer.input.rows import Maker, Rows
from producer.input.source import Source
from producer.input.source_group import SourceGroup
from producer.input.spooled import RereadableFile
from producer.input.tables import csv_rows
from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted

#: What lists are called, for messages.
LIST_SUFFIXES = ".csv, .jsonl, .ndjson, .parquet, .tsv, .txt, also with .gz or .zst"
_LIST = re.compile(r"[^/]\.(txt|csv|tsv|jsonl|ndjson|parquet)(?:\.(gz|zst))?\Z", re.IGNORECASE)


class Kind(NamedTuple):
    """What a list is, by its suffix."""

    format: str
    packing: str | None = None


def kind_of(name: str) -> Kind | None:
    """What kind of list a file or an address is; none where it is no list."""
    found = _LIST.search(name)
    return Kind(found[1].lower(), found[2] and found[2].lower()) if found else None


class ListFile(SourceGroup):
    """A list of images.

    Args:
        stored: Its bytes.
        kind: What it is; none: JSON lines where it begins with `{`, else plain lines.
        base: The folder that relative paths begin at; none where it may not name local files.
        reading: Which columns.
        inside: The folder in which it may name files, resolved; empty: in none. `allow_local` opens all.
    """

    def __init__(
        self, stored: RereadableFile, kind: Kind | None, base: str | None, reading: ReadOptions, inside: str = ""
    ) -> None:
        self.name = stored.name
        self._stored = stored
        self._kind = kind
        self._reading = reading
        self.bad = self._bad = BadRows(self.name)
        self._at_most: int | None = None
        #: Batches of rows whose addresses need no second look.
        self._plain: set[int] = set()
        #: Rows that are left out: their places in each batch of rows.
        self._skipped: dict[int, frozenset[int]] = {}
        self.has_columns = kind is None or kind.format != "txt"
        row = "row" if kind and kind.format == "parquet" else "line"
        self._maker = Maker(self.name, base, row, None if reading.allow_local else inside)

    def check(self, at_most: int | None, *, whole: bool) -> None:
        """Read it through, and count. Raises UsageError with the number of the first line that cannot be used."""
        self._at_most, left, count = at_most, at_most, 0
        unseen = set(self._reading.columns)
        with closing(self._all_rows(unseen)) as found:
            for place, rows in enumerate(found):
                good = self._checked(place, rows, left)
                if rows.plain:
                    self._plain.add(place)
                count += good
                left = None if left is None else left - good
                if left is not None and left <= 0:
                    break
        if not count and not self._bad.count:
            raise UsageError(f"{self.name} names no images: it is empty")
        if unseen and self.has_columns:
            raise UsageError(f"{self.name} has no column {quoted(min(unseen))} in any of its {count:,} lines")
        self.count = count

    def batches(self) -> Iterator[list[Source]]:
        """Read the images. Errors as `check`."""
        left = self._at_most
        with closing(self._all_rows(set())) as found:
            for place, rows in enumerate(found):
                rows.plain = place in self._plain
                good = rows.without(self._skipped[place]) if place in self._skipped else rows
                if left is not None:
                    good = good.first(left)
                    left -= len(good.uris)
                if good.uris:
                    yield self._maker.make(good)
                if left is not None and left <= 0:
                    return

    def close(self) -> None:
        """Give back what was kept on the disk."""
        self._stored.close()
        self._bad.close()

    def _checked(self, place: int, rows: Rows, left: int | None) -> int:
        """Look at some rows, or at no more than make so many good ones; how many are good."""
        if not self._reading.skip_bad:
            rows = rows if left is None else rows.first(left)
            for at, why in sorted(self._maker.wrong(rows).items()):
                raise self._maker.error(rows.number(at), why)
            return len(rows.uris)
        wrong = self._maker.wrong(rows)
        good = len(rows.uris) - len(wrong)
        if left is not None and good >= left:
            # What is behind the last one that is wanted need not be good.
            *_, last = islice((at for at in range(len(rows.uris)) if at not in wrong), left)
            wrong, good = {at: why for at, why in wrong.items() if at < last}, left
        if wrong:
            # Kept for when it is read again: a file that is missing now may be there by then.
            self._skipped[place] = frozenset(wrong)
            for at, why in sorted(wrong.items()):
                self._bad.add(bad_row(self._maker, rows, at, why))
        return good

    def _all_rows(self, unseen: set[str]) -> Generator[Rows, None, None]:
        kind = self._kind = self._kind or self._guess()
        if kind.format == "parquet":
            return parquet_rows(self._unpacked(kind.packing), self._maker, self._reading, unseen)
        if kind.format == "txt":
            return text_rows(blocks(self._stored, kind.packing, MAX_LINE_BYTES))
        found = blocks(self._stored, kind.packing)
        if kind.format in {"csv", "tsv"}:
            return csv_rows(found, self.name, "," if kind.format == "csv" else "\t", self._reading, unseen)
        return json_rows(found, self._maker, self._reading, unseen)

    def _guess(self) -> Kind:
        with self._stored.open() as file:
            return Kind("jsonl" if file.read(1024).removeprefix(BOM).startswith(b"{") else "txt")

    def _unpacked(self, packing: str | None) -> RereadableFile:
        """Parquet is read from its end: it must be unpacked as a whole."""
        if packing and not isinstance(self._stored, DecompressedFile):
            self._stored = DecompressedFile(self._stored, packing)
        return self._stored
