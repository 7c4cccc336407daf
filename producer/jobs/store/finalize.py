"""A job's summary in the object store, at its beginning and its end, which it enters once, whoever does it."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from producer.jobs.model import keys, release
from producer.jobs.model.errors import BucketClosed, OtherVersion, ServiceError, StoreError, UsageError, WorkerError
from producer.jobs.model.history import Action
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.redaction import redact
from producer.jobs.model.spec import JobSpec, is_newer
from producer.jobs.model.states import TERMINAL, Ingest, JobState
from producer.jobs.model.status import JobStatus
from producer.jobs.store.bucket import Storage
from producer.jobs.table.claims import Finalizing
from producer.jobs.table.queries import FACTS, MOST_ACTIONS
from producer.jobs.table.table import JobTable


class DamagedSummary(StoreError):
    """A job's summary in the store cannot be read."""


class NewerSummary(StoreError):
    """A job's summary in the store was written by a newer version."""


_Number = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Ended(BaseModel):
    """What is read of the status in a summary, whichever release wrote it."""

    state: str
    total: _Number
    done: _Number
    failed: _Number
    created_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None

    @property
    def whole(self) -> bool:
        """Whether it ended because each of its images had its end; a job that failed or was cancelled did not."""
        return self.state in _WHOLE and self.total == self.done + self.failed

    def ended_before(self, time: datetime) -> bool:
        """Whether that was before a time, as far as it is known."""
        return self.finished_at is not None and self.finished_at < time


class Recorded(BaseModel):
    """What is read of a summary."""

    spec: JobSpec
    #: The first token whose records are this job's.
    since: Annotated[int, Field(ge=0, lt=10**15)] = 0
    #: Where the job stood at its end, whatever that release wrote of it; none where it has not ended.
    status: Any = None
    #: What workers noted of it, and what was done to it, likewise.
    found: Any = None
    history: Any = None

    @property
    def ended(self) -> Ended | None:
        """How it ended; None where it had not."""
        try:
            ended = Ended.model_validate(self.status)
        except ValidationError:
            return None
        return ended if ended.state in TERMINAL else None

    @property
    def facts(self) -> dict[str, str]:
        """What workers noted of it, as far as it can be read."""
        found = self.found if isinstance(self.found, dict) else {}
        return {name: value for name in FACTS if isinstance(value := found.get(name), str)}

    @property
    def actions(self) -> list[Action]:
        """What was done to it, the latest last, as far as it can be read."""
        found = []
        for entry in self.history if isinstance(self.history, list) else []:
            with suppress(ValidationError):
                found.append(Action.model_validate(entry, strict=False))
        return found[-MOST_ACTIONS:]


log = logging.getLogger(__name__)

_WHOLE: Final = frozenset({JobState.SUCCEEDED, JobState.COMPLETED_WITH_ERRORS})
#: Nothing longer is read of a summary: a job's class names are most of it.
MAX_SUMMARY_BYTES: Final = 64 * 2**20
#: What a status says of the moment it was asked in.
_OF_THE_MOMENT = {
    *("workers", "problem", "redis_problem", "stalled_s", "other_versions"),
    *("waited_for", "waits", "waits_reason"),
}


def finalize(table: JobTable, storage: Storage, job: str, who: str) -> bool:
    """Write `job.json` and enter the end; False when another one does it or the job is elsewhere.

    Raises:
        WorkerError: The store cannot be reached from here: another one may try at once, this one again in a while.
    """
    mine = table.finalize(job, who)
    if mine is None:
        return False
    written = False
    try:
        _write_summary(table, storage, job, mine)
        written = True
    except (BucketClosed, OtherVersion) as error:
        # Whose fault that is, the others' tries tell. It may be the very reason why the job ends. What cannot be read
        # here, a worker of another version may read.
        if table.decline(job, who, unless_last=True):
            log.warning("action=summary_declined job=%s Left to others: %s", job, error)
            return False
        log.warning("action=summary_failed job=%s The summary could not be written: %s", job, error)
    except StoreError as error:
        # It has to end all the same.
        log.warning("action=summary_failed job=%s The summary could not be written: %s", job, error)
    except BaseException:
        with suppress(ServiceError):  # then the lease runs out
            table.decline(job, who)
        raise
    ended = table.finish(job, who, mine, summary=written)
    if ended:
        log.info("action=job_ended job=%s The job has ended: %s.", job, mine.end)
    return ended


def finalize_if_due(table: JobTable, open_storage: Callable[[], Storage], job: str) -> None:
    """Enter the end where nothing but the end is left; a worker's reconciler would do it a little later.

    Args:
        table: The job table.
        open_storage: Gives our bucket; it is opened only where it is needed.
        job: Its id.
    """
    if table.queries.state(job) != JobState.FINALIZING:
        return
    with suppress(WorkerError):
        finalize(table, open_storage(), job, f"client-{uuid.uuid4().hex}")


def _write_summary(table: JobTable, storage: Storage, job: str, mine: Finalizing) -> None:
    found = table.queries.outline(job)
    if found is None:
        return  # it is gone, and cannot be finished
    status = table.queries.status(job).model_copy(update={"state": mine.end, "finished_at": mine.at})
    left = status.total - status.done - status.failed
    status = status.model_copy(update={"cancelled": left, "pending": 0, "eta_s": None})
    if _says_more(table, storage, status):
        return
    # As it was written: whichever version did, any can end it.
    write_summary(table, storage, found.spec, status)


def _says_more(table: JobTable, storage: Storage, status: JobStatus) -> bool:
    """Whether the store has the summary of an earlier life in Redis, with each image's end, and this one adds nothing.

    It adds nothing where it never had all images, and where it was made of those records and nothing was done since.
    """
    is_partial = status.ingest is Ingest.OPEN
    if not is_partial and (status.generation > 1 or not table.queries.recovered(status.job)):
        return False
    try:
        known = recorded(storage, status.job)
    except (DamagedSummary, NewerSummary):
        return False
    before = known.ended if known else None
    if before is None or not before.whole:
        return False
    return is_partial or (before.total, before.done, before.failed) == (status.total, status.done, status.failed)


def write_summary(table: JobTable, storage: Storage, spec: dict[str, Any], status: JobStatus) -> None:
    """Write what a job came to. Raises StoreError, JobError, WorkerError: the store cannot be used."""
    summary = {
        "status": status.model_dump(mode="json", exclude=_OF_THE_MOMENT),
        "spec": _shown(spec),
        "since": table.queries.since(status.job),
        "found": table.queries.facts(status.job),
        "classes": _classes(table.queries.histogram(status.job)),
        "history": [action.model_dump(mode="json") for action in table.queries.history(status.job)],
        "versions": versions("gradcam-queue"),
    }
    storage.put(keys.summary(storage.prefix, status.job), json.dumps(summary, indent=1).encode())


def _shown(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec for everybody who reads the bucket: the address of its weights may hold a secret."""
    return {
        name: redact(value) if name == "weights" and isinstance(value, str) else value for name, value in spec.items()
    }


def _classes(histogram: dict[str, int]) -> list[dict[str, object]]:
    """The histogram of explained classes, the most frequent first."""
    rows: list[dict[str, object]] = []
    for key, count in sorted(histogram.items(), key=lambda entry: (-entry[1], entry[0])):
        number, _, name = key.partition(" ")
        rows.append({"class_id": int(number), "class_name": name, "count": count})
    return rows


def begin(storage: Storage, job: str, spec: JobSpec, *, since: int) -> int:
    """Write down what a job computes before it begins: were Redis wiped, its name and pictures still belong to it.

    Args:
        storage: Our bucket.
        job: Its id.
        spec: What it computes.
        since: The first token that records of it may have, if it is new.

    Returns:
        The first token, as the store knows it: an earlier life in Redis may have begun before.

    Raises:
        UsageError: The store holds a job of that name with another spec.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    known = recorded(storage, job)
    if known is None:
        key = keys.summary(storage.prefix, job)
        storage.put(key, json.dumps({"spec": _shown(spec.model_dump(mode="json")), "since": since}, indent=1).encode())
        return since
    before, now = (each.model_copy(update={"weights": redact(each.weights)}) for each in (known.spec, spec))
    moved = before.store not in {"", now.store}
    if moved:
        # It was read where it says that it is not: its objects were copied here, as from a bucket that is lost.
        same_weights = before.weights_sha256 is not None and before.weights_sha256 == now.weights_sha256
        before = before.model_copy(
            update={"store": now.store, "weights": now.weights if same_weights else before.weights}
        )
    if before != now:
        raise UsageError(
            f"the store holds a job named {job} with other parameters ({before.differing(now)}): choose another "
            "--name, or give the same parameters"
        )
    if moved:
        _move(storage, job, spec)
    return known.since


def _move(storage: Storage, job: str, spec: JobSpec) -> None:
    """Write down that a job's objects, and its weights, lie here."""
    key = keys.summary(storage.prefix, job)
    summary = json.loads(storage.get(key)) | {"spec": _shown(spec.model_dump(mode="json"))}
    storage.put(key, json.dumps(summary, indent=1).encode())


def recorded_spec(storage: Storage, job: str) -> JobSpec | None:
    """What a job of that name computes, as the store knows it; None when it knows none.

    Raises:
        DamagedSummary: It cannot be read.
        NewerSummary: It was written by a newer version.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    known = recorded(storage, job)
    return known.spec if known else None


def recorded(storage: Storage, job: str) -> Recorded | None:
    """What the store knows of a job of that name; None when it knows none. Errors as `recorded_spec`."""
    key = keys.summary(storage.prefix, job)
    size_bytes = storage.size(key)
    if size_bytes is None:
        return None
    try:
        # What is longer is read as nothing.
        return Recorded.model_validate_json(storage.get(key) if size_bytes <= MAX_SUMMARY_BYTES else b"")
    except ValueError as error:
        if isinstance(error, ValidationError) and is_newer(error, ("spec",)):
            raise NewerSummary(
                f"{storage.uri(key)} was written by a newer version of gradcam-queue: update this one, or choose "
                "another --name"
            ) from None
        raise DamagedSummary(
            f"{storage.uri(key)} cannot be read, it is torn or not ours: choose another --name; while Redis knows the "
            f"job, `gradcam audit {job} --repair` writes it again, and `gradcam delete {job} --objects` deletes all"
        ) from None


def versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions, without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = release.own() if name == release.DISTRIBUTION else version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
