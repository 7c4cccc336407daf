"""The failed images of a job as a list that `gradcam submit` reads again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.errors import UsageError
from producer.output.export import KEEP, format_of, write_rows
from producer.output.whole import whole

if TYPE_CHECKING:
    from producer.jobs.spec import Failure

COLUMNS = ("uri", "id", "class", "reason", "message")
HOW_TO_SUBMIT = "--uri-column uri --class-column class --id-column id"


def write_failures(read: Callable[[], Iterator[Failure]], path: Path) -> int:
    """Write failures, with their addresses in full: secrets in them are for the file's owner alone (mode 0600).

    Args:
        read: Begins to read them; more than once.
        path: A .jsonl or a .csv file; there whole or not at all.

    Returns:
        How many.

    Raises:
        UsageError: It cannot be written, or is to be something else.
    """
    format = format_of(path.name)
    if format == "parquet":
        raise UsageError(f"failures are written as .jsonl or .csv, not as {path.name}")
    if format == "csv":
        kept = list(dict.fromkeys(name for failure in read() for name in _kept(failure)))
        header = (*COLUMNS, *kept)
        with whole(path, private=True) as file:
            rows = (_row(failure) for failure in read())
            return write_rows(header, ([row.get(name) for name in header] for row in rows), file)
    count = 0
    with whole(path, private=True) as file:
        for failure in read():
            file.write(json.dumps(_row(failure), ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _row(failure: Failure) -> dict[str, object]:
    item = failure.item
    of_class = item.class_name if item.class_id is None else item.class_id
    values = (item.uri, item.id, of_class, failure.reason, failure.message)
    return {**dict(zip(COLUMNS, values, strict=True)), **_kept(failure)}


def _kept(failure: Failure) -> dict[str, str]:
    return {KEEP + name if name in COLUMNS else name: value for name, value in (failure.item.keep or {}).items()}
