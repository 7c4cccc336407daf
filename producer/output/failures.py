"""The failed images of a job as a list that `gradcam submit` reads again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.model import keys
from producer.output.resubmission_list import beside, write_again

if TYPE_CHECKING:
    from producer.jobs.model.results import Failure
    from producer.jobs.model.spec import JobSpec

COLUMNS = ("uri", "id", "class", "label", "reason", "message")
#: What there is to know of files that were uploaded.
UPLOADED = "local files are tried again as they were uploaded: where you corrected one since, submit the file itself"


def uploads_of(spec: JobSpec, job: str) -> str:
    """Return how the addresses of a job's uploaded files begin."""
    return f"s3://{keys.uploaded_inputs(spec.store.rstrip('/'), job)}"


def how_to_read(spec: JobSpec, keep: Mapping[str, str] | None) -> list[str]:
    """Return the options by which `gradcam submit` reads such a list.

    Args:
        spec: Of the job; where it says which classes are explained, no image had one of its own.
        keep: Columns that were carried along.
    """
    options = ["--uri-column", "uri", "--id-column", "id", "--label-column", "label"]
    of_job = (spec.class_id, spec.class_name, spec.classes)
    if all(each is None for each in of_job) and spec.explain == "predicted":
        options += ["--class-column", "class"]
    kept = beside(COLUMNS, keep)
    return [*options, "--keep-columns", ",".join(kept)] if kept else options


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
