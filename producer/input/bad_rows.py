"""Rows of lists that were left out because they cannot be used, and why: kept on the disk, however many they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from producer.input.display import printable
from producer.input.rows import text_of
from producer.input.spooled import TempFile, explain_full_disk

if TYPE_CHECKING:
    from producer.input.rows import Maker, Rows

#: Of a row that could not be read as such, so much is kept as it stands.
_MAX_RAW_CHARS = 2**16


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out; its address in full, with the secrets that it may hold."""

    #: What the list is called.
    list: str
    #: Its number there.
    number: int
    #: What a row is called there.
    called: str
    #: What is wrong with it, in words without secrets.
    why: str
    #: The address, or the path from the root; empty where the row could not be read as such.
    uri: str = ""
    id: str | None = None
    #: The class as it is written.
    of_class: str | None = None
    #: And the label.
    label: str | None = None
    #: Columns that were to be carried along.
    keep: dict[str, str] = field(default_factory=dict)
    #: The row as it stands in the list, where it could not be read as such.
    raw: str | None = None

    @property
    def sentence(self) -> str:
        """The message for it."""
        return f"{self.list} {self.called} {self.number}: {self.why}"


class BadRows:
    """All of a list's that were left out."""

    def __init__(self, name: str) -> None:
        self.count = 0
        self._name = name
        self._spool: TempFile | None = None

    def add(self, row: BadRow) -> None:
        """Keep one. Raises UsageError when there is no room."""
        with explain_full_disk(self._name):
            if self._spool is None:
                self._spool = TempFile()
            self._spool.append(json.dumps(asdict(row)).encode() + b"\n")
        self.count += 1

    def __iter__(self) -> Iterator[BadRow]:
        """Read them, in their order."""
        if self._spool is not None:
            with self._spool.open() as file:
                for line in file:
                    yield BadRow(**json.loads(line))

    def close(self) -> None:
        """Let go of them."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def bad_row(maker: Maker, rows: Rows, place: int, why: str) -> BadRow:
    """Collect all that is known of a bad row."""
    number = rows.number(place)
    if place in rows.broken:
        return BadRow(maker.name, number, maker.row, why, raw=printable(rows.raw(place)[:_MAX_RAW_CHARS]) or None)
    columns = (rows.ids, rows.classes, rows.labels)
    id, of_class, label = (None if column is None else _text(column[place]) for column in columns)
    keep = {name: text for name, column in (rows.keep or {}).items() if (text := _text(column[place])) is not None}
    return BadRow(
        maker.name, number, maker.row, why, printable(maker.address(rows.uris[place])), id, of_class, label, keep
    )


def _text(cell: object) -> str | None:
    text = text_of(cell)
    return None if text is None else printable(text.strip())
