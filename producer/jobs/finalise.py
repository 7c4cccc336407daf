"""A job's summary in the object store, at its beginning and its end, which it enters once, whoever does it."""

from __future__ import annotations

import json
import logging
from importlib.metadata import PackageNotFoundError, version

from producer.jobs import keys, release
from producer.jobs.errors import JobError, StoreError, UsageError
from producer.jobs.spec import JobSpec
from producer.jobs.storage import Storage
from producer.jobs.table import JobTable

log = logging.getLogger(__name__)

#: What a status says of the moment it was asked in.
_OF_THE_MOMENT = {"workers", "problem", "redis_problem", "stalled_s", "waits", "other_versions"}


def finalise(table: JobTable, storage: Storage, job: str, who: str) -> bool:
    """Write `job.json` and enter the end; False when another one does it or the job is elsewhere.

    Raises:
        WorkerError: The store cannot be reached from here; the next reconciler tries again.
    """
    mine = table.finalise(job, who)
    if mine is None:
        return False
    found = table.spec(job)
    if found is None:
        return False
    status = table.status(job).model_copy(update={"state": mine.end, "finished_at": mine.at})
    left = status.total - status.done - status.failed
    status = status.model_copy(update={"cancelled": left, "pending": 0, "eta_s": None})
    summary = {
        "status": status.model_dump(mode="json", exclude=_OF_THE_MOMENT),
        "spec": found[0].model_dump(mode="json"),
        "found": table.facts(job),
        "classes": _classes(table.histogram(job)),
        "versions": versions("gradcam-queue"),
    }
    try:
        storage.put(keys.summary(storage.prefix, job), json.dumps(summary, indent=1).encode())
    except (JobError, StoreError) as error:
        # A bucket that is gone may be the very reason why the job ends; it has to end all the same.
        log.warning("action=summary_failed job=%s The summary could not be written: %s", job, error)
    ended = table.finish(job, who, mine)
    if ended:
        log.info("action=job_ended job=%s The job has ended: %s.", job, mine.end)
    return ended


def _classes(histogram: dict[str, int]) -> list[dict[str, object]]:
    """The histogram of explained classes, the most frequent first."""
    rows: list[dict[str, object]] = []
    for key, count in sorted(histogram.items(), key=lambda entry: (-entry[1], entry[0])):
        number, _, name = key.partition(" ")
        rows.append({"class_id": int(number), "class_name": name, "count": count})
    return rows


def begin(storage: Storage, job: str, spec: JobSpec) -> None:
    """Write down what a job computes before it begins: were Redis wiped, its name and pictures still belong to it.

    Raises:
        UsageError: The store holds a job of that name with another spec.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    known = recorded_spec(storage, job)
    if known is None:
        key = keys.summary(storage.prefix, job)
        storage.put(key, json.dumps({"spec": spec.model_dump(mode="json")}, indent=1).encode())
    elif known != spec:
        raise UsageError(
            f"the store holds a job named {job} with other parameters ({known.differing(spec)}): choose another "
            "--name, or give the same parameters"
        )


def recorded_spec(storage: Storage, job: str) -> JobSpec | None:
    """What a job of that name computes, as the store knows it; None when it knows none. Errors as `begin`."""
    key = keys.summary(storage.prefix, job)
    if storage.size(key) is None:
        return None
    try:
        return JobSpec.model_validate(json.loads(storage.get(key))["spec"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{storage.uri(key)} is not one of ours, or of another version: choose another --name"
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
