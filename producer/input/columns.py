"""Which columns of a list are read: those asked for by name, and the one that holds the addresses.

Case and white space around a name do not matter where only one column is meant: crawlers write `URL` and `TEXT`, and
who puts a space after each comma has a column ` label`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from producer.input.read_options import ReadOptions
from producer.input.source import SUFFIXES
from producer.jobs.model.errors import UsageError
from producer.jobs.model.redaction import redact
from producer.jobs.model.text import quoted, shown

#: What a column of addresses is usually called.
URI_COLUMNS = ("uri", "url", "image", "path", "file", "filename")
#: All its names in the order in which they are tried, in lower case, without `_`, `-` and spaces.
_USUAL = (
    *("uri", "url", "imageuri", "imageurl", "imguri", "imgurl", "image"),
    *("imagepath", "imgpath", "path", "filepath", "file", "filename"),
)
_JOINTS = re.compile(r"[\s_-]+")
_COLUMNS_SHOWN = 20
_WORDS = re.compile(r"\w[\w -]{0,39}([;|\t][\w -]{0,40}){1,50}")
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars (|)", ",": "commas"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that are read, by their names in the list."""

    uri: str
    classes: str | None
    ids: str | None
    labels: str | None
    #: What each column that is carried along was called by who asked for it, and what it is called in the list.
    keep: tuple[tuple[str, str], ...]

    @classmethod
    def find(cls, there: Sequence[str], reading: ReadOptions, name: str, hint: str = "") -> Columns:
        """Find out which columns to read of those that a list has.

        Args:
            there: Their names.
            reading: What was asked for.
            name: The list's, for messages.
            hint: What may be wrong with the list where one is missing.

        Raises:
            UsageError: One that was named is not there, or is there twice.
        """

        def named(column: str) -> str:
            found = find_column(column, there, name)
            if found is None:
                raise UsageError(f"{name} has no column {quoted(column)}; {_columns_are(there)}{hint}")
            return found

        return cls(
            uri_column(there, name, hint) if reading.uri_column is None else named(reading.uri_column),
            reading.class_column and named(reading.class_column),
            reading.id_column and named(reading.id_column),
            reading.label_column and named(reading.label_column),
            tuple((column, named(column)) for column in reading.keep_columns),
        )

    @property
    def all(self) -> list[str]:
        """Every column that is read, once."""
        named = (self.uri, self.classes, self.ids, self.labels, *(there for _, there in self.keep))
        return list(dict.fromkeys(name for name in named if name is not None))


def find_column(wanted: str, there: Sequence[str], name: str) -> str | None:
    """Find a column by its name; none where it is not there. Raises UsageError where several may be meant."""
    for spelling in (str, _folded):
        alike = [column for column in there if spelling(column) == spelling(wanted)]
        if len(alike) > 1:
            raise _several(wanted, there, name)
        if alike:
            return alike[0]
    return None


def uri_column(there: Sequence[str], name: str, hint: str = "") -> str:
    """Find the column that holds the addresses by its usual names. Raises UsageError when none or several are there."""
    by_name: dict[str, list[str]] = {}
    for column in there:
        by_name.setdefault(_JOINTS.sub("", column).casefold(), []).append(column)
    for usual in _USUAL:
        alike = by_name.get(usual, [])
        if alike.count(usual) == 1 or len(alike) == 1:
            return usual if usual in alike else alike[0]
        if alike:
            raise _several(alike[0], there, name)
    raise UsageError(
        f"{name} has no column {', '.join(URI_COLUMNS[:-1])} or {URI_COLUMNS[-1]}; {_columns_are(there)}"
        + (hint or ": say with --uri-column which one holds the addresses")
    )


def separator_hint(cells: Sequence[str], delimiter: str) -> str:
    """Tell that a table seems to have other separators than its name says; nothing where it does not."""
    for other, called in _SEPARATORS.items():
        if other != delimiter and any(other in cell for cell in cells):
            better = {"\t": "name it .tsv", ",": "name it .csv"}.get(other)
            return f". Its cells seem to be separated by {called}: " + (
                better or "save it as .csv with commas, or as .tsv with tabs"
            )
    return ""


def header_hint(cells: Sequence[str]) -> str:
    """Tell that a table seems to have no header; nothing where it has."""
    if not any(map(_is_image, cells)):
        return ""
    return (
        ". Its first line is read as names of columns and holds an image: put a line such as `uri,label` above it, or "
        "name a list of addresses alone .txt"
    )


def _is_image(cell: str) -> bool:
    return "://" in cell or os.path.splitext(cell)[1].lower() in SUFFIXES


def _several(wanted: str, there: Sequence[str], name: str) -> UsageError:
    return UsageError(f"{name} has several columns named {quoted(wanted)}; {_columns_are(there)}")


def _folded(column: str) -> str:
    return column.strip().casefold()


def _columns_are(there: Sequence[str]) -> str:
    # What is an address may hold a secret behind a `;`; words with other separators between them are names.
    named = [shown(column if _WORDS.fullmatch(column) else redact(column)) or "''" for column in there[:_COLUMNS_SHOWN]]
    more = f" and {len(there) - _COLUMNS_SHOWN} more" if len(there) > _COLUMNS_SHOWN else ""
    return f"its columns are {', '.join(named)}{more}"[:500]
