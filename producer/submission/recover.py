"""Jobs that the store has, after Redis is gone for good: which they are, and how each comes back.

A job that had ended is made again from its manifest alone. Of one that was at work only its source knows all images:
whoever has it submits it again under the name, and what was done is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from producer.input.source import Source
from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, UnknownJob, UnreadableJob, UsageError, no_such
from producer.jobs.model.frozen import Frozen
from producer.jobs.model.names import is_job_name
from producer.jobs.model.redaction import hides
from producer.jobs.model.states import TERMINAL, Ingest, JobState
from producer.jobs.store.finalize import Ended, Recorded, recorded
from producer.output.prefetch import prefetch_map
from producer.output.results import read_chunks
from producer.submission.command_line import IMAGES, blanks, command_of

if TYPE_CHECKING:
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable
    from producer.jobs.table.user_actions import By
    from producer.output.manifest import ChunkRecords
    from producer.submission.submit import Submission

_LOOKS_AT_ONCE = 8


class StoredJob(Frozen):
    """A job as the store knows it."""

    job: str
    #: How it ended; `open` where it had not, `unreadable` where its summary cannot be read here, `unknown` without one.
    state: str
    network: str | None = None
    #: Of a job that has ended: its images, and when.
    total: int | None = None
    done: int | None = None
    failed: int | None = None
    finished_at: datetime | None = None
    #: Whether Redis knows it.
    in_redis: bool
    #: Whether the store alone brings it back; also of one that Redis has in part, where that was broken off.
    can_be_recovered: bool = False
    #: Whether it is not in Redis, and ended longer ago than a job stays there: nobody needs to have lost it.
    expired: bool = False
    #: What brings it back, to be typed; none where nothing is needed, or nothing known.
    command: str | None = None
    #: What the words stand for that are to be replaced in the command.
    blanks: str | None = None
    #: Why it cannot be told how it comes back.
    problem: str | None = None


class Recovered(Frozen):
    """What came back of a job."""

    job: str
    state: JobState
    total: int
    done: int
    failed: int
    #: Of how many failed images the store has no whole address: they cannot be tried again.
    hidden: int
    #: Whether the store has no whole address of its weights: nothing of it can be tried again.
    weights_hidden: bool


def stored_jobs(table: JobTable, storage: Storage, *, lifetime_s: float) -> Iterator[StoredJob]:
    """The jobs that have a folder in the store, by their names.

    Args:
        table: The job table.
        storage: Our bucket.
        lifetime_s: How long a job stays in Redis after its end.

    Raises:
        ServiceError: Redis is away; an empty one will do.
        JobError, WorkerError: The store cannot be used.
    """
    forgotten_before = datetime.now(UTC) - timedelta(seconds=lifetime_s)
    names = (name for name in storage.folders(keys.jobs_prefix(storage.prefix)) if is_job_name(name))
    with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="look") as pool:
        looked = prefetch_map(
            pool, lambda job: _stored(table, storage, job, forgotten_before), names, depth=2 * _LOOKS_AT_ONCE
        )
        yield from (found for found in looked if found is not None)


def _stored(table: JobTable, storage: Storage, job: str, forgotten_before: datetime) -> StoredJob | None:
    try:
        there, is_open = table.queries.state(job) is not None, table.queries.is_open(job)
    except UnreadableJob as error:
        return StoredJob(job=job, state="unreadable", in_redis=True, problem=str(error))
    try:
        known = recorded(storage, job)
    except StoreError as error:
        return StoredJob(job=job, state="unreadable", in_redis=there, problem=str(error))
    if known is None:
        if not _has_objects(storage, job):
            return None
        problem = None if there else "it had no --name and had not ended: submit its images again"
        return StoredJob(job=job, state="unknown", in_redis=there, problem=problem)
    ended = known.ended
    whole = ended is not None and ended.whole and (is_open or not there)
    command = f"gradcam recover {job}" if whole else None if there else command_of(known.spec, name=job)
    return StoredJob(
        job=job,
        state=ended.state if ended else "open",
        network=known.spec.network,
        **(ended.model_dump(include={"total", "done", "failed", "finished_at"}) if ended else {}),
        in_redis=there,
        can_be_recovered=whole,
        expired=not there and ended is not None and ended.ended_before(forgotten_before),
        command=command,
        blanks=None if whole or command is None else _blanks(command),
    )


def _has_objects(storage: Storage, job: str) -> bool:
    """Whether a folder without a summary is a job's: other things may lie beside ours, or in a folder of that name."""
    return any(
        keys.is_of_job(storage.prefix, job, key)
        for folder in keys.folders_of_job(storage.prefix, job)
        if (key := next(storage.keys(folder), None)) is not None
    )


def _blanks(command: str) -> str:
    others = blanks(command)
    return f"{IMAGES} stands for what the job was made from" + (f", {others}" if others else "")


class _Images:
    """The images of a job as its manifest has them, in order; read anew each time.

    Args:
        storage: Our bucket.
        job: Its id.
        known: What its summary says.
    """

    def __init__(self, storage: Storage, job: str, known: Recorded) -> None:
        self._storage, self._job, self._known = storage, job, known
        self._last: ChunkRecords | None = None

    def chunks(self) -> Iterator[ChunkRecords]:
        return read_chunks(self._storage, self._job, self._known.spec.chunk_size, since=self._known.since)

    def __iter__(self) -> Iterator[Source]:
        for chunk in self.chunks():
            self._last = chunk
            for one in chunk.results():
                yield Source(uri=one.uri, id=one.id, label=one.label, keep=one.keep)

    def records(self, number: int) -> ChunkRecords:
        """What was read of the chunk whose images were given last."""
        if self._last is None or self._last.number != number:
            raise StoreError(f"the records of job {self._job} changed while they were read: recover it again")
        return self._last


def recover(
    table: JobTable,
    storage: Storage,
    submission: Submission,
    job: str,
    *,
    by: By,
    waiting: Callable[[str], None] | None = None,
) -> Recovered:
    """Make a job in Redis again that had ended, from what the store has of it; nothing is explained again.

    It is paused until all of it is there; where that breaks off, the same call goes on. The class that a list gave to
    one image (`--class-column`) is in no record: images that failed have none then. Objects that were copied from
    another bucket are taken as this one's.

    Args:
        table: The job table.
        storage: Our bucket.
        submission: Sends images.
        job: Its id.
        by: Who does it.
        waiting: Called with a sentence while Redis is too full to take more.

    Raises:
        UnknownJob: The store knows no such job.
        UsageError: Redis knows it; or it had not ended, or records are missing: says which command brings it back.
        StoreError, JobError, WorkerError: The store cannot be used, or what is there cannot be read.
        ServiceError: Redis cannot be used.
    """
    held, is_open = table.queries.state(job), table.queries.is_open(job)
    if held is not None and not is_open:
        _refuse(table, job, held)
    known = recorded(storage, job)
    if known is None:
        raise UnknownJob(no_such(job))
    ended = _whole(known, job)
    images = _Images(storage, job, known)
    count, hidden = _count(images)
    if count != ended.total:
        raise UsageError(
            f"of {ended.total} images of job {job} only the first {count} have a record in the store: "
            f"{_again(known.spec, job)}"
        )

    def begun(life: str) -> None:
        table.actions.recover(
            job,
            life,
            created_at=ended.created_at or datetime.now(UTC),
            facts=known.facts,
            history=known.actions,
            by=by,
        )

    spec = known.spec.model_copy(update={"store": storage.place})
    submission.send(job, job, spec, images, count, waiting=waiting, begun=begun, records=images.records)
    status = table.queries.status(job)
    return Recovered(
        job=job,
        state=status.state,
        total=status.total,
        done=status.done,
        failed=status.failed,
        hidden=hidden,
        weights_hidden=hides(spec.weights),
    )


def _refuse(table: JobTable, job: str, state: str) -> NoReturn:
    if state in TERMINAL and table.queries.status(job).ingest is Ingest.OPEN:
        raise UsageError(
            f"job {job} ended before all of it was in Redis ({state}): `gradcam delete {job}`, then recover it"
        )
    raise UsageError(f"Redis knows job {job}: nothing needs to be recovered; `gradcam audit {job}` looks at it")


def _whole(known: Recorded, job: str) -> Ended:
    """How a job ended that the store can bring back. Raises UsageError: it is none."""
    ended = known.ended
    if ended is not None and ended.whole:
        return ended
    if ended is None or ended.total > ended.done + ended.failed:
        had = "had not ended" if ended is None else f"was {ended.state} with images left"
        raise UsageError(f"job {job} {had}: only its source knows all of its images; {_again(known.spec, job)}")
    raise UsageError(
        f"job {job} was {ended.state}: the store has what it did, not what was left to do; {_again(known.spec, job)}"
    )


def _again(spec: JobSpec, job: str) -> str:
    command = command_of(spec, name=job)
    return f"submit it again: {command} ({_blanks(command)})"


def _count(images: _Images) -> tuple[int, int]:
    """How many images in a row have records, and of how many failed ones no whole address is known."""
    count = hidden = 0
    for result in (result for chunk in images.chunks() for result in chunk.results()):
        if result.index != count:
            break
        count += 1
        hidden += result.state == "failed" and hides(result.uri)
    return count, hidden
