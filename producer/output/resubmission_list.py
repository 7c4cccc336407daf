"""Lists that `gradcam submit` reads again: of images that failed, of rows that could not be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import in_json
from producer.output.atomic_file import atomic_file
from producer.output.export import KEEP, format_of, write_rows


def check_name(path: Path) -> None:
    """Make sure that a file's name says how to write it. Raises UsageError."""
    if format_of(path.name) == "parquet":
        raise UsageError(f"a list to submit again is written as .jsonl or .csv, not as {path.name}")


def write_again(read: Callable[[], Iterable[Mapping[str, object]]], path: Path, columns: Sequence[str]) -> int:
    """Write rows, with their addresses in full: secrets in them are for the file's owner alone (mode 0600).

    Args:
        read: Begins to read them; more than once.
        path: A .jsonl or a .csv file; there whole or not at all.
        columns: Those that every row has, in their order; others follow.

    Returns:
        How many.

    Raises:
        UsageError: It cannot be written, or is to be something else.
    """
    check_name(path)
    if path.name.lower().endswith(".csv"):
        header = list(dict.fromkeys([*columns, *(name for row in read() for name in row)]))
        with atomic_file(path, private=True) as file:
            return write_rows(header, ([row.get(name) for name in header] for row in read()), file)
    count = 0
    with atomic_file(path, private=True) as file:
        for row in read():
            file.write(in_json(json.dumps(row, ensure_ascii=False)).encode() + b"\n")
            count += 1
    return count


def beside(columns: Sequence[str], keep: Mapping[str, str] | None) -> dict[str, str]:
    """Columns of the user's, under names that are not ours."""
    return {KEEP + name if name in columns else name: value for name, value in (keep or {}).items()}
