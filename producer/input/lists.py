"""Lists of images, told apart by their suffix.

| suffix               | is                                                                                    |
|----------------------|---------------------------------------------------------------------------------------|
| `.txt`               | an address or a path a line; blank lines and those that begin with `#` are skipped    |
| `.csv`, `.tsv`       | a header with names of columns, then a row an image, quoted as spreadsheets do        |
| `.jsonl`, `.ndjson`  | a JSON object a line, an image each                                                   |
| `.parquet`           | a row an image; needs pyarrow                                                         |
| and `.gz` or `.zst`  | the same, compressed                                                                  |

All text is UTF-8, with or without a byte order mark; lines end in LF or CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

from producer.input.packing import Unpacked
from producer.input.readers import BOM, blocks, csv_rows, json_rows, parquet_rows, text_rows
from producer.input.reading import Part, Reading, Source, quoted
from producer.input.rows import Maker, Rows
from producer.input.stored import Stored
from producer.jobs.errors import UsageError

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


class ListFile(Part):
    """A list of images.

    Args:
        stored: Its bytes.
        kind: What it is; none: JSON lines where it begins with `{`, else plain lines.
        base: The folder that relative paths begin at; none where it may not name local files.
        reading: Which columns.
    """

    def __init__(self, stored: Stored, kind: Kind | None, base: str | None, reading: Reading) -> None:
        self.name = stored.name
        self._stored = stored
        self._kind = kind
        self._reading = reading
        self._at_most: int | None = None
        self.has_columns = kind is None or kind.format != "txt"
        self._maker = Maker(self.name, base, "row" if kind and kind.format == "parquet" else "line")

    def check(self, at_most: int | None, *, whole: bool) -> None:
        """Read it through, and count. Raises UsageError with the number of the first line that cannot be used."""
        self._at_most, count = at_most, 0
        unseen = set(self._reading.columns)
        with closing(self._rows(unseen)) as found:
            for rows in found:
                self._maker.check(rows)
                count += len(rows.uris)
        if not count:
            raise UsageError(f"{self.name} names no images: it is empty")
        if unseen and self.has_columns:
            raise UsageError(f"{self.name} has no column {quoted(min(unseen))} in any of its {count:,} lines")
        self.count = count

    def batches(self) -> Iterator[list[Source]]:
        """Read the images. Errors as `check`."""
        return map(self._maker.make, self._rows(set()))

    def close(self) -> None:
        """Give back what was kept on the disk."""
        self._stored.close()

    def _rows(self, unseen: set[str]) -> Generator[Rows, None, None]:
        """Read as many rows as are wanted; columns that were seen are taken out of `unseen`."""
        left = self._at_most
        with closing(self._all_rows(unseen)) as found:
            for rows in found:
                if left is None:
                    yield rows
                    continue
                yield rows.first(left)
                left -= len(rows.uris)
                if left <= 0:
                    return

    def _all_rows(self, unseen: set[str]) -> Generator[Rows, None, None]:
        kind = self._kind = self._kind or self._guess()
        if kind.format == "parquet":
            return parquet_rows(self._unpacked(kind.packing), self._maker, self._reading, unseen)
        found = blocks(self._stored, kind.packing)
        if kind.format == "txt":
            return text_rows(found, self.name)
        if kind.format in {"csv", "tsv"}:
            return csv_rows(found, self.name, "," if kind.format == "csv" else "\t", self._reading, unseen)
        return json_rows(found, self._maker, self._reading, unseen)

    def _guess(self) -> Kind:
        with self._stored.open() as file:
            return Kind("jsonl" if file.read(1024).removeprefix(BOM).startswith(b"{") else "txt")

    def _unpacked(self, packing: str | None) -> Stored:
        """Parquet is read from its end: it must be unpacked as a whole."""
        if packing and not isinstance(self._stored, Unpacked):
            self._stored = Unpacked(self._stored, packing)
        return self._stored
