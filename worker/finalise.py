"""A job whose images all have their end gets its summary, then enters its end; once, whoever does it."""

from __future__ import annotations

import json
import logging
from importlib.metadata import PackageNotFoundError, version

from producer.jobs import keys
from producer.jobs.errors import JobError, StoreError
from producer.jobs.storage import Storage
from producer.jobs.table import JobTable

log = logging.getLogger(__name__)


def finalise(table: JobTable, storage: Storage, job: str, who: str) -> bool:
    """Write `job.json` and enter the end; False when another one does it or the job is elsewhere.

    Raises:
        WorkerError: The store cannot be reached from here; the next reconciler tries again.
    """
    mine = table.finalise(job, who)
    if mine is None:
        return False
    end, finished_at = mine
    found = table.spec(job)
    if found is None:
        return False
    status = table.status(job).model_copy(update={"state": end, "finished_at": finished_at})
    left = status.total - status.done - status.failed
    status = status.model_copy(update={"cancelled": left, "pending": 0, "eta_s": None})
    summary = {
        "status": status.model_dump(mode="json", exclude={"workers", "problem"}),
        "spec": found[0].model_dump(mode="json"),
        "found": table.facts(job),
        "versions": versions("gradcam-queue"),
    }
    try:
        storage.put(keys.summary(storage.prefix, job), json.dumps(summary, indent=1).encode())
    except (JobError, StoreError) as error:
        # A bucket that is gone may be the very reason why the job ends; it has to end all the same.
        log.warning("action=summary_failed job=%s The summary could not be written: %s", job, error)
    ended = table.finish(job, who, end, finished_at)
    if ended:
        log.info("action=job_ended job=%s The job has ended: %s.", job, end)
    return ended


def versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions, without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
