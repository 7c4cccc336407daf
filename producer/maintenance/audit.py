"""Compare what the job table says of a job with the objects in the store, and set right what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby, islice
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, UsageError
from producer.jobs.model.items import MAX_LINES, Item
from producer.jobs.model.redaction import hides
from producer.jobs.model.results import Result, class_key
from producer.jobs.model.states import ItemState, JobState
from producer.jobs.model.text import counted
from producer.jobs.store.bucket import DELETED_AT_ONCE
from producer.jobs.store.finalize import DamagedSummary, NewerSummary, recorded_spec, write_summary
from producer.jobs.table.user_actions import NOBODY, By
from producer.maintenance.maintenance_lease import MaintenanceLease
from producer.maintenance.retry import RetryItem, reopen
from producer.output.manifest import ChunkRecords, lines_of
from producer.output.results import MAX_PART_BYTES, read_chunks
from producer.output.shards import Shards

if TYPE_CHECKING:
    from producer.jobs.broker.messages import Publish
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.model.status import JobStatus
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable

_T = TypeVar("_T")


class Finding(BaseModel):
    """One way in which a job's table and its objects differ."""

    model_config = ConfigDict(frozen=True)

    #: `missing`: an image has its end, and this is not there; `empty`: it is there, and has no bytes; `extra`: it is
    #: there, and belongs to no done image; `damaged`: a line of a manifest, or the summary, cannot be read; `newer`: it
    #: was written by a newer version of this program.
    kind: Literal["missing", "empty", "extra", "damaged", "newer"]
    #: The image's index, where the object has one.
    index: int | None
    #: The object; of an image without a line in the manifest, the manifest.
    key: str
    #: The line of the manifest, from 1 on.
    line: int | None = None
    #: What the manifest says of the image.
    result: Result | None = None
    #: What a repair explains again; none where nobody knows the image's whole address any more. It may hold secrets.
    again: RetryItem | None = Field(default=None, exclude=True, repr=False)


def audit(table: JobTable, storage: Storage, job: str) -> Iterator[Finding]:
    """Find what is missing and what is extra, in the order of the images; memory takes a byte an image.

    While a job is at work, nothing counts as extra: pictures are written before they are called done.

    Raises:
        UnknownJob: There is no such job.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    status = table.queries.status(job)
    spec = table.queries.existing_spec(job)
    ended = status.ended or status.state is JobState.REPAIRING
    if ended:
        yield from _of_summary(storage, job)
    yield from _Audit(table, storage, job, spec, ended=ended).findings()


def _of_summary(storage: Storage, job: str) -> Iterator[Finding]:
    key = keys.summary(storage.prefix, job)
    try:
        if recorded_spec(storage, job) is None:
            yield Finding(kind="missing", index=None, key=key)
    except DamagedSummary:
        yield Finding(kind="damaged", index=None, key=key)
    except NewerSummary:
        yield Finding(kind="newer", index=None, key=key)


class _Audit:
    """One look at a job."""

    def __init__(self, table: JobTable, storage: Storage, job: str, spec: JobSpec, *, ended: bool) -> None:
        self._table, self._storage, self._job, self._spec, self._ended = table, storage, job, spec, ended
        # First, a byte an image: whatever is called done by now has been written before.
        self._states = b"".join(piece for _, piece in table.queries.states(job))
        self._chunks = _Sorted(
            (chunk.number, chunk)
            for chunk in read_chunks(
                storage,
                job,
                spec.chunk_size,
                states=lambda first, count: self._states[first : first + count],
                since=table.queries.since(job),
            )
        )
        prefix = keys.images_prefix(storage.prefix, job)
        self._objects = _Sorted(_grouped(storage.sizes(prefix), prefix))
        self._shards = dict(storage.sizes(keys.shards_prefix(storage.prefix, job)))
        self._named: set[str] = set()  # shards that an image is in
        self._unknown: set[int] = set()  # chunks with a done image that no manifest tells of
        self._opened = Shards(storage)

    def findings(self) -> Iterator[Finding]:
        """See `audit`."""
        size = self._spec.chunk_size
        for number in range(-(-len(self._states) // size)):
            chunk = self._chunks.at(number) or ChunkRecords(number, number * size, b"")
            for one in chunk.damage:
                yield Finding(kind="newer" if one.newer else "damaged", index=one.index, key=one.key, line=one.line)
            newer = {one.index for one in chunk.damage if one.newer}
            for index in range(number * size, min((number + 1) * size, len(self._states))):
                there = self._objects.at(index) or {}
                yield from self._of_image(chunk, index, there, newer=index in newer)
        if not self._ended:
            return
        for shard in self._shards.keys() - self._named:
            # What nothing tells of may be all that is left of such images.
            if keys.chunk_of(shard) not in self._unknown:
                yield Finding(kind="extra", index=None, key=shard)
        for index, there in self._objects.rest():
            for key in sorted(there):
                yield Finding(kind="extra", index=index if index >= 0 else None, key=key)

    def _of_image(self, chunk: ChunkRecords, index: int, there: Mapping[str, int], *, newer: bool) -> Iterator[Finding]:
        state, result = chunk.state(index), chunk.result(index)
        wanted: set[str] = set()
        if state is not ItemState.PENDING and result is None:
            if state is ItemState.DONE:
                self._unknown.add(chunk.number)
            # What a newer version says of it counts, though it cannot be read here.
            if not newer:
                key = keys.manifest_prefix(self._storage.prefix, self._job)
                yield Finding(kind="missing", index=index, key=key, again=self._lost(chunk, index, state))
            if state is ItemState.DONE:
                return
        if state is ItemState.DONE and result is not None:
            wanted = {address.partition("#")[0] for address in result.objects.values()}
            self._named |= wanted & self._shards.keys()
            again = _again(result, self._spec)
            for key in sorted(wanted):
                size_bytes = there.get(key, self._shards.get(key))
                if not size_bytes:
                    kind: Literal["missing", "empty"] = "missing" if size_bytes is None else "empty"
                    yield Finding(kind=kind, index=index, key=key, result=result, again=again)
        if self._ended:
            for key in sorted(there.keys() - wanted):
                yield Finding(kind="extra", index=index, key=key)

    def _lost(self, chunk: ChunkRecords, index: int, state: ItemState) -> RetryItem | None:
        """What to explain again of an image whose record is gone; its address may stand elsewhere."""
        if state is ItemState.FAILED:
            return next(
                (RetryItem(index, one.item) for one in self._table.queries.failures_at(self._job, [index])[0]), None
            )
        described = keys.member(index, "json")
        result = next((record.result for record in reversed(chunk.records.get(index, []))), None)
        for shard in (shard for shard in sorted(self._shards) if keys.chunk_of(shard) == chunk.number):
            if result is None:
                with suppress(StoreError, ValidationError):
                    result = Result.model_validate_json(self._opened.get(keys.in_shard(shard, described)))
        return None if result is None else _again(result, self._spec)


def repair(table: JobTable, storage: Storage, publish: Publish, job: str, *, by: By = NOBODY) -> Iterator[Finding]:
    """Set right what an audit finds: extra objects are deleted, images with missing ones are explained again.

    The job's history keeps by whom, where images are explained again.

    Yields:
        What was found.

    Raises:
        UsageError: The job has not ended, was cancelled, or misses what only its source knows.
        UnknownJob, StoreError, JobError, WorkerError: As `audit`.
    """
    status, spec = table.queries.status(job), table.queries.existing_spec(job)
    with MaintenanceLease(table, job, JobState.REPAIRING) as lease:
        repair = _Repair(table, storage, publish, spec, lease, status, by)
        for finding in audit(table, storage, job):
            repair.note(finding)
            yield finding
        repair.finish()


class _Repair:
    """What is set right of a job."""

    def __init__(
        self,
        table: JobTable,
        storage: Storage,
        publish: Publish,
        spec: JobSpec,
        lease: MaintenanceLease,
        status: JobStatus,
        by: By,
    ) -> None:
        self._by = by
        self._table, self._storage, self._publish, self._spec = table, storage, publish, spec
        #: The client's lease of the job, and the job's status before.
        self._lease, self._status, job = lease, status, status.job
        self._job = job
        self._summary = keys.summary(storage.prefix, job)
        self._shards = keys.shards_prefix(storage.prefix, job)
        #: Objects to delete, and parts of the manifest, or the summary, to write anew.
        self._extra: dict[str, None] = {}
        self._torn: dict[str, None] = {}
        self._again: dict[int, RetryItem] = {}
        self._unknown = self._newer = 0
        #: Images whose records have their addresses without secrets: nothing can be fetched from there.
        self._hidden: set[int] = set()

    def note(self, finding: Finding) -> None:
        """Take note of what was found; delete what is extra, many at once."""
        if finding.kind == "newer":
            self._newer += 1
        elif finding.kind == "damaged" or finding.key == self._summary:
            self._torn[finding.key] = None
        elif finding.kind == "extra":
            self._delete(finding.key)
        elif finding.again is None and finding.result is not None:
            self._hidden.add(finding.result.index)
        elif finding.again is None:
            self._unknown += 1
        else:
            self._again[finding.again.index] = finding.again
            # Its images get another one, and nothing is in it.
            if finding.kind == "empty" and finding.key.startswith(self._shards):
                self._delete(finding.key)

    def _delete(self, key: str) -> None:
        self._extra[key] = None
        if len(self._extra) == DELETED_AT_ONCE:
            self._delete_now()

    def _delete_now(self) -> None:
        if self._extra:
            self._lease.check()
            self._storage.delete(list(self._extra))
            self._extra.clear()

    def finish(self) -> None:
        """Do the rest. Raises UsageError: something cannot be set right."""
        self._delete_now()
        self._lease.check()
        # Parts first: what is torn in them is explained again after that, as the bits of the images say.
        for key in self._torn:
            if key != self._summary:
                _without_torn_lines(self._storage, key, self._spec.chunk_size)
            elif not self._again:  # else it is written at the end
                write_summary(self._table, self._storage, self._spec.model_dump(mode="json"), self._status)
        if self._again:
            queue, images = self._spec.queue, (self._again[index] for index in sorted(self._again))
            # In one step from `repairing` to `running`: nobody can come in between.
            generation = self._table.actions.retry(
                self._job, queue, retry_id=self._lease.who, mode="repair", by=self._by
            )
            reopen(self._table, self._publish, self._job, generation, images)
        said = []
        if self._newer:
            newer = counted(self._newer, "record was", "records were")
            said.append(f"{newer} written by a newer version of gradcam-queue: update this one")
        if self._unknown:
            said.append(
                f"of {counted(self._unknown, 'image')} nothing is left but the word that they have their end: submit "
                "their source again under another name"
            )
        if self._hidden:
            said.append(
                f"the addresses of {counted(len(self._hidden), 'image')} held what may be a secret, which no record "
                "keeps: submit their source again under another name"
            )
        if said:
            raise UsageError("; ".join(said))


def _without_torn_lines(storage: Storage, key: str, chunk_size: int) -> None:
    """Write a part of a manifest again with its readable lines; images of torn lines are explained again."""
    part = keys.manifest_part(key)
    size_bytes = storage.size(key)
    if part is None or size_bytes is None:
        return
    content = storage.get(key) if size_bytes <= MAX_PART_BYTES else b""
    chunk = ChunkRecords(part.chunk, part.chunk * chunk_size)
    chunk.add(key, part, content, chunk_size)
    torn = {one.line for one in chunk.damage if not one.newer}
    kept = [line for number, line in islice(lines_of(content), MAX_LINES) if line and number not in torn]
    if kept:
        storage.put(key, b"\n".join(kept))
    else:
        storage.delete([key])


def _again(result: Result, spec: JobSpec) -> RetryItem | None:
    """What to explain again; none where the record has no whole address."""
    return None if hides(result.uri) else RetryItem(result.index, _item(result, spec), class_key(result))


def _item(result: Result, spec: JobSpec) -> Item:
    """The item as it must have been; the class it was explained for, since that may have been its own."""
    one_class = spec.top_k == 1 and spec.class_id is None and spec.class_name is None and spec.explain == "predicted"
    class_id = result.class_id if one_class else None
    return Item(uri=result.uri, id=result.id, class_id=class_id, label=result.label, keep=result.keep)


def _grouped(names: Iterable[tuple[str, int]], prefix: str) -> Iterator[tuple[int, dict[str, int]]]:
    def index_of(entry: tuple[str, int]) -> int:
        number = entry[0].removeprefix(prefix).split("/", 1)[0]
        return int(number) if number.isascii() and number.isdigit() else -1

    for index, group in groupby(names, index_of):
        yield index, dict(group)


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
