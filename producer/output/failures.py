"""The failed images of a job as a list that `gradcam submit` reads again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from producer.output.resubmission_list import beside, write_again

if TYPE_CHECKING:
    from producer.jobs.model.results import Failure

COLUMNS = ("uri", "id", "class", "label", "reason", "message")
HOW_TO_SUBMIT = "--uri-column uri --class-column class --id-column id --label-column label"


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
    return write_again(lambda: map(_row, read()), path, COLUMNS)


def _row(failure: Failure) -> dict[str, object]:
    item = failure.item
    of_class = item.class_name if item.class_id is None else item.class_id
    values = (item.uri, item.id, of_class, item.label, failure.reason, failure.message)
    return {**dict(zip(COLUMNS, values, strict=True)), **beside(COLUMNS, item.keep)}
