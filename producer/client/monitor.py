"""Where jobs stand: one at a time, again and again, or many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from producer.jobs.model import keys
from producer.jobs.model.errors import UsageError
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.status import JobStatus
from producer.jobs.model.worker_record import Drained, WorkerRecord

if TYPE_CHECKING:
    from producer.client.services import Services

#: How often `watch` looks, in seconds: quick for a handful of photos, light for a run of hours.
_FIRST_LOOK_S = 0.2
_SLOWEST_LOOK_S = 2.0
#: How many jobs' objects `list` looks for at once.
_LOOKS_AT_ONCE = 8


class JobList(list[JobStatus]):
    """Jobs, newest first."""

    #: How many entries of Redis were left out: no job can have their names.
    misnamed: int = 0


class Monitor:
    """Looks at jobs; each method is described at the method of `Client` that has its name."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def status(self, job: str) -> JobStatus:
        """See `Client.status`."""
        return self._with_objects(self._services.table.queries.status(job))

    def _with_objects(self, status: JobStatus) -> JobStatus:
        """Redis may bring back a job that was deleted with its objects: an older copy of its file was restored."""
        if not status.ended or not status.done:
            return status
        store = self._services.table.queries.place_of_summary(status.job)
        if store not in {"", self._services.storage.place}:
            return status  # it was never written, or lies elsewhere
        if self._services.storage.glance(keys.summary(self._services.storage.prefix, status.job)) is not False:
            return status
        gone = (
            "its objects are gone from the store, as of a deleted job that an older copy of Redis brought back: "
            f"`gradcam delete {status.job}` forgets it"
        )
        return status.model_copy(update={"objects_gone": True, "problem": gone})

    def workers(self) -> list[WorkerRecord]:
        """See `Client.workers`."""
        return self._services.table.registry.workers()

    def drain(self, name: str) -> Drained:
        """See `Client.drain`."""
        found = self.workers()
        processes = tuple(worker.name for worker in found if name == worker.name)
        kind = "process" if processes else "launcher"
        processes = processes or tuple(worker.name for worker in found if name == worker.launcher)
        if not processes:
            raise UsageError("no worker process or launcher that is alive has that name: `gradcam workers` lists them")
        if deaf := [worker.name for worker in found if worker.name in processes and not worker.known]:
            raise UsageError(
                f"worker {deaf[0]} tells no more than its name, as those up to 0.3.0, which cannot be asked to leave: "
                "send SIGTERM to its launcher, which finishes its batch and gives the rest to others"
            )
        self._services.table.registry.drain(name)
        return Drained(name=name, kind=kind, processes=processes)

    def watch(self, job: str, waiting: Callable[[str], None] | None = None) -> Iterator[JobStatus]:
        """See `Client.watch`."""
        self._services.wait_for_redis(waiting)
        pause_s = _FIRST_LOOK_S
        while True:
            status = self.status(job)
            yield status
            if status.ended:
                return
            if status.is_half_deleted:
                raise UsageError(f"job {job} is not waited for: {status.problem}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _SLOWEST_LOOK_S)

    def wait(self, job: str, timeout_s: float | None) -> JobStatus:
        """See `Client.wait`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for status in self.watch(job):
            if status.ended:
                return status
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {status.state} after {timeout_s:.0f} s")
        raise AssertionError("watch ends with an ended status")

    def list(self, *, limit: int, offset: int, state: Sequence[str], name: str | None) -> JobList:
        """See `Client.list`."""
        for option, number in (("limit", limit), ("offset", offset)):
            if not 0 <= number <= MAX_COUNT:
                raise UsageError(f"{option} must be 0 to {MAX_COUNT:,}")

        def keep(status: JobStatus) -> bool:
            return (not state or status.state in state) and (name is None or fnmatchcase(status.job, name))

        misnamed: list[int] = []
        found = self._services.table.queries.jobs(limit=limit, offset=offset, keep=keep, misnamed=misnamed.append)
        with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="look") as pool:
            jobs = JobList(pool.map(self._with_objects, found))
        jobs.misnamed = sum(misnamed)
        return jobs
