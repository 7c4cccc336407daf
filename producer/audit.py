"""Compare what the job table says of a job with the objects in the store, and set right what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from producer.jobs import keys
from producer.jobs.errors import UsageError
from producer.jobs.spec import Item, Result, class_key
from producer.jobs.states import ItemState, JobState
from producer.jobs.storage import DELETED_AT_ONCE
from producer.maintenance import Maintenance
from producer.output.results import read_results
from producer.retry import Again, reopen

if TYPE_CHECKING:
    from producer.jobs.spec import JobSpec
    from producer.jobs.storage import Storage
    from producer.jobs.table import JobTable
    from producer.submit import Publish

_T = TypeVar("_T")


class Finding(BaseModel):
    """One way in which a job's table and its objects differ."""

    model_config = ConfigDict(frozen=True)

    #: `missing`: an image is called done, and this is not there; `extra`: it is there, and belongs to no done image.
    kind: Literal["missing", "extra"]
    #: The image's index, where the object has one.
    index: int | None
    #: The object; of a done image without a line in the manifest, the manifest.
    key: str
    #: What the manifest says of the image.
    result: Result | None = None


def audit(table: JobTable, storage: Storage, job: str) -> Iterator[Finding]:
    """Find what is missing and what is extra, in the order of the images; memory takes a byte an image.

    While a job is at work, nothing counts as extra: pictures are written before they are called done.

    Raises:
        UnknownJob: There is no such job.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    status = table.status(job)
    still = status.ended or status.state is JobState.REPAIRING
    # First, a byte an image: whatever is called done by now has been written before.
    states = list(table.control.states(job))
    prefix = keys.images_prefix(storage.prefix, job)
    manifest = keys.manifest_prefix(storage.prefix, job)
    results = _Sorted((result.index, result) for result in read_results(storage, job))
    objects = _Sorted(_grouped(storage.keys(prefix), prefix))
    shards = dict.fromkeys(storage.keys(keys.shards_prefix(storage.prefix, job)), 0)  # how many images each is named by
    spec = table.spec(job)
    size = spec[0].chunk_size if spec else 1
    unknown: set[int] = set()  # chunks with a done image that no manifest tells of
    for index, state in ((first + n, state) for first, piece in states for n, state in enumerate(piece)):
        result, there = results.at(index), objects.at(index) or set()
        wanted: set[str] = set()
        if state == ItemState.DONE:
            if result is None or result.state != "done":
                unknown.add(index // size)
                yield Finding(kind="missing", index=index, key=manifest)
                continue
            wanted = {address.partition("#")[0] for address in result.objects.values()}
            for shard in wanted & shards.keys():
                shards[shard] += 1
            for key in sorted(wanted - there - shards.keys()):
                yield Finding(kind="missing", index=index, key=key, result=result)
        if still:
            for key in sorted(there - wanted):
                yield Finding(kind="extra", index=index, key=key)
    if still:
        for shard, count in shards.items():
            # What nothing tells of may be all that is left of such images.
            if not count and keys.chunk_of(shard) not in unknown:
                yield Finding(kind="extra", index=None, key=shard)
        for index, there in objects.rest():
            for key in sorted(there):
                yield Finding(kind="extra", index=index if index >= 0 else None, key=key)


def repair(table: JobTable, storage: Storage, publish: Publish, job: str) -> Iterator[Finding]:
    """Set right what an audit finds: extra objects are deleted, images with missing ones are explained again.

    Yields:
        What was found.

    Raises:
        UsageError: The job has not ended, was cancelled, or misses what only its source knows.
        UnknownJob, StoreError, JobError, WorkerError: As `audit`.
    """
    with Maintenance(table, job, JobState.REPAIRING) as held:
        yield from _repair(table, storage, publish, job, held)


def _repair(table: JobTable, storage: Storage, publish: Publish, job: str, held: Maintenance) -> Iterator[Finding]:
    found = table.spec(job)
    extra: list[str] = []
    again: dict[int, Again] = {}
    unknown = 0
    for finding in audit(table, storage, job):
        if finding.kind == "extra":
            extra.append(finding.key)
            if len(extra) == DELETED_AT_ONCE:
                held.check()
                storage.delete(extra)
                extra.clear()
        elif finding.result is None or found is None:
            unknown += 1
        elif finding.index is not None:
            item = _item(finding.result, found[0])
            again[finding.index] = Again(finding.index, item, class_key(finding.result))
        yield finding
    if extra:
        held.check()
        storage.delete(extra)
    if again and found is not None:
        # In one step from `repairing` to `running`: nobody can come in between.
        generation = table.control.retry(job, found[0].queue, retry_id=held.who, mode="repair")
        reopen(table, publish, job, generation, (again[index] for index in sorted(again)))
    if unknown:
        raise UsageError(
            f"of {unknown} images nothing is left but the word that they are done: submit their source again under "
            "another name"
        )


def _item(result: Result, spec: JobSpec) -> Item:
    """The item as it must have been; the class it was explained for, since that may have been its own."""
    one_class = spec.top_k == 1 and spec.class_id is None and spec.class_name is None
    return Item(uri=result.uri, id=result.id, class_id=result.class_id if one_class else None, keep=result.keep)


def _grouped(names: Iterable[str], prefix: str) -> Iterator[tuple[int, set[str]]]:
    def index_of(name: str) -> int:
        number = name.removeprefix(prefix).split("/", 1)[0]
        return int(number) if number.isdigit() else -1

    for index, group in groupby(names, index_of):
        yield index, set(group)


class _Sorted(Generic[_T]):
    """A stream of numbered values, read along with a count that goes up."""

    def __init__(self, stream: Iterable[tuple[int, _T]]) -> None:
        self._stream = iter(stream)
        self._next = next(self._stream, None)
        self._skipped: list[tuple[int, _T]] = []

    def at(self, index: int) -> _T | None:
        """The value of that number; what lies before it is kept for `rest`."""
        while self._next is not None and self._next[0] < index:
            self._skipped.append(self._next)
            self._next = next(self._stream, None)
        if self._next is None or self._next[0] != index:
            return None
        value = self._next[1]
        self._next = next(self._stream, None)
        return value

    def rest(self) -> Iterator[tuple[int, _T]]:
        """What no number was asked for."""
        yield from self._skipped
        while self._next is not None:
            yield self._next
            self._next = next(self._stream, None)
