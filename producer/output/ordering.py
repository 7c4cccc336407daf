"""Images in the order of a column, and only so many of them, however many there are."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import IO, TypeAlias

from producer.jobs.model.errors import UsageError
from producer.jobs.model.results import Result
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted
from producer.output.filters import KEEP

#: What can be sorted by, beside `keep.COLUMN`.
SORTED_BY = (
    *("index", "uri", "id", "state", "class_id", "class_name", "probability", "layer", "flat", "reason"),
    *("label", "predicted", "predicted_probability", "correct", "score"),
)
#: Lines that are sorted in memory; more lie in files that are merged. About 50 MB.
_AT_ONCE = 50_000
#: Whether something is known, and what: nothing comes last, whatever the direction.
_Key: TypeAlias = tuple[bool, object]


@dataclass(frozen=True)
class Order:
    """By which column, and in which direction."""

    column: str
    descending: bool

    def key(self, result: Result) -> _Key:
        """What an image is sorted by."""
        value = _READ[self.column](result) if self.column in _READ else (result.keep or {}).get(self._kept)
        return (value is None) is not self.descending, "" if value is None else value

    @property
    def _kept(self) -> str:
        return self.column.removeprefix(KEEP)


_READ: dict[str, Callable[[Result], object]] = {name: attrgetter(name) for name in SORTED_BY}


def parse_order(text: str | None) -> Order | None:
    """Read `probability`, or `-probability` for the greatest first. Raises UsageError: there is no such column."""
    if text is None:
        return None
    column = text.strip()
    descending = column.startswith("-")
    column = column.removeprefix("-")
    if column not in _READ and not (column.startswith(KEEP) and column != KEEP):
        raise UsageError(
            f"nothing is sorted by {quoted(text)}{nearest(column, SORTED_BY)}: sort by {', '.join(SORTED_BY)} or "
            "keep.COLUMN, with a - before it for the greatest first"
        )
    return Order(column, descending)


def check_limit(limit: int | None) -> None:
    """Raises UsageError: no number of images."""
    if limit is not None and limit < 1:
        raise UsageError("the limit must be 1 or more")


def ordered(results: Iterable[Result], order: Order | None, limit: int | None) -> Iterator[Result]:
    """Put images in order and take the first so many; memory stays flat, what does not fit lies on this disk.

    Images that are equal stay in their order.

    Args:
        results: The images, in the order of their index.
        order: That order when absent.
        limit: All when absent.
    """
    if order is None:
        return iter(results) if limit is None else islice(results, limit)
    if limit is not None and limit <= _AT_ONCE:
        take = heapq.nlargest if order.descending else heapq.nsmallest
        return iter(take(limit, results, key=order.key))
    return islice(_merged(results, order), limit)


def _merged(results: Iterable[Result], order: Order) -> Iterator[Result]:
    """External merge sort: runs that fit into memory, each in a file, read along with the others."""
    stream = iter(results)
    with ExitStack() as files:
        runs: list[Iterator[Result]] = []
        while run := [(order.key(result), result.line.encode()) for result in islice(stream, _AT_ONCE)]:
            run.sort(key=lambda entry: entry[0], reverse=order.descending)
            file = files.enter_context(tempfile.TemporaryFile(prefix="gradcam-sort-"))
            file.writelines(line + b"\n" for _, line in run)
            file.seek(0)
            runs.append(_read(file))
        yield from heapq.merge(*runs, key=order.key, reverse=order.descending)


def _read(file: IO[bytes]) -> Iterator[Result]:
    return (Result.model_validate_json(line) for line in file)
