"""The Python client: the same verbs as the `gradcam` command.

from producer.client.client import Client

client = Client.from_env()
job = client.submit(["photos/", "s3://bucket/cat.jpg"], network="resnet50")
for status in client.watch(job):
    print(status.done, "of", status.total)
client.download(job, "results")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from producer.client.submitting import Submitting
from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.spec import Failure, JobStatus, Result, checked_name
from producer.jobs.model.states import TERMINAL, JobState
from producer.jobs.store.bucket import DELETED_AT_ONCE
from producer.maintenance.audit import Finding, audit
from producer.maintenance.audit import repair as set_right
from producer.maintenance.maintenance_lease import Maintenance
from producer.maintenance.retry import retry_failed
from producer.output.checks import check_classes, check_reason
from producer.output.download import Downloaded, Fetched
from producer.output.export import Format
from producer.output.failures import write_failures
from producer.output.filters import ResultFilter
from producer.output.job_results import Choice, JobResults, Link

#: How often `watch` looks, in seconds: quick for a handful of photos, light for a run of hours.
_FIRST_LOOK_S = 0.2
_SLOWEST_LOOK_S = 2.0
#: How many jobs' objects `list` looks for at once.
_LOOKS_AT_ONCE = 8


class Client(Submitting):
    """Send images to be explained and see what became of them. Safe to share between threads."""

    # -- control ---------------------------------------------------------------------------------------------------

    def cancel(self, job: str) -> JobStatus:
        """Stop a job for good: what is done stays, workers stop after the batch in hand.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It has ended otherwise.
        """
        state = self.table.actions.cancel(job)
        if state in TERMINAL and state is not JobState.CANCELLED:
            raise UsageError(f"job {job} has ended already: {state}")
        self._finalize(job)
        return self.status(job)

    def pause(self, job: str) -> JobStatus:
        """Hand out nothing more of a job until it is resumed. Errors as `cancel`."""
        return self._not_ended(job, self.table.actions.pause(job))

    def resume(self, job: str) -> JobStatus:
        """Go on with a paused job. Errors as `cancel`."""
        status = self._not_ended(job, self.table.actions.resume(job))
        self._send_missing(self._outline(job).queue)
        return status

    def retry(self, job: str, *, reason: str | None = None) -> int:
        """Try the failed images of a job that has ended once more, and nothing else; how many.

        Args:
            job: Its id.
            reason: Only images that failed for it, such as `fetch` or `timeout`.

        Raises:
            UnknownJob: There is no such job, or its lifetime is over.
            UsageError: It has not ended, was cancelled, or nothing failed.
        """
        queue = self._outline(job).queue
        self._ready()
        self._finalize(job)  # where a worker cannot write its summary, it need not wait for another
        count = retry_failed(self.table, self._publisher(job, queue), job, queue, reason=reason)
        self._send_missing(queue)
        return count

    def delete(self, job: str, *, objects: bool = False, progress: Callable[[int], None] | None = None) -> int:
        """Forget a job that has ended, and with `objects` everything it has in the store; how many objects went.

        Objects go first, so that what was broken off can be repeated. Uploaded weights stay: other jobs share them.

        Args:
            job: Its id.
            objects: Whether its pictures, manifests and uploaded images go as well.
            progress: Called with objects deleted so far.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It has not ended.
            StoreError, JobError, WorkerError: The store cannot be used.
        """
        self._finalize(job)  # where a worker cannot write its summary, it need not wait for another
        if not objects:
            self.table.actions.delete(job)
            return 0
        try:
            self._same_store(job)
        except UnknownJob:
            # Redis forgets a job after its lifetime, the store does not.
            # What stands in its summary does not matter: it may be torn.
            if self.storage.size(keys.summary(self.storage.prefix, checked_name(job))) is None:
                raise
        with Maintenance(self.table, job, JobState.DELETING) as held:
            count = self._delete_objects(job, held, progress)
            with suppress(UnknownJob):
                self.table.actions.delete(job, who=held.who)
        return count

    def _delete_objects(self, job: str, held: Maintenance, progress: Callable[[int], None] | None) -> int:
        count = 0
        names = self.storage.keys(keys.job_prefix(self.storage.prefix, job))
        while part := list(islice(names, DELETED_AT_ONCE)):
            held.check()
            held.incomplete = True
            self.storage.delete(part)
            count += len(part)
            if progress:
                progress(count)
        return count

    def audit(self, job: str, *, repair: bool = False) -> Iterator[Finding]:
        """Compare what is called done with the objects in the store; what is missing and what is extra.

        Args:
            job: Its id.
            repair: Delete extra objects, and explain images with missing ones again.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It cannot be repaired: it has not ended, was cancelled, or only its source knows what is gone.
        """
        self._same_store(job)
        if repair:
            return set_right(self.table, self.storage, self._publisher(job, self._spec(job).queue), job)
        return audit(self.table, self.storage, job)

    def _not_ended(self, job: str, state: JobState) -> JobStatus:
        if state in TERMINAL:
            raise UsageError(f"job {job} has ended already: {state}")
        return self.status(job)

    # -- looking ---------------------------------------------------------------------------------------------------

    def status(self, job: str) -> JobStatus:
        """Look at a job; of one that has ended, also whether its objects are still there.

        Raises:
            UnknownJob: There is none of that name.
        """
        return self._with_objects(self.table.queries.status(job))

    def _with_objects(self, status: JobStatus) -> JobStatus:
        """Redis may bring back a job that was deleted with its objects: an older copy of its file was restored."""
        if not status.ended or not status.done:
            return status
        store = self.table.queries.place_of_summary(status.job)
        if store not in {"", self.storage.place}:
            return status  # it was never written, or lies elsewhere
        if self.storage.glance(keys.summary(self.storage.prefix, status.job)) is not False:
            return status
        gone = (
            "its objects are gone from the store, as of a deleted job that an older copy of Redis brought back: "
            f"`gradcam delete {status.job}` forgets it"
        )
        return status.model_copy(update={"objects_gone": True, "problem": gone})

    def watch(self, job: str) -> Iterator[JobStatus]:
        """Look at a job again and again; the last status is that of its end. A Redis that restarts is waited for.

        Raises:
            UnknownJob: There is no such job.
            ServiceError: Redis has been away for a minute.
        """
        pause_s = _FIRST_LOOK_S
        while True:
            status = self.status(job)
            yield status
            if status.ended:
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _SLOWEST_LOOK_S)

    def wait(self, job: str, *, timeout_s: float | None = None) -> JobStatus:
        """Wait for a job's end.

        Raises:
            TimeoutError: It had not ended by then; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for status in self.watch(job):
            if status.ended:
                return status
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {status.state} after {timeout_s:.0f} s")
        raise AssertionError("watch ends with an ended status")

    def failures(self, job: str, *, reason: str | None = None) -> Iterator[Failure]:
        """Images of a job that failed, each with its reason; with `reason` only those that failed for it.

        Raises:
            UnknownJob: There is no such job.
            UsageError: No image ever fails for such a reason.
        """
        if reason is not None:
            check_reason(reason, self.table.queries.status(job).failures)
        return (failure for failure in self.table.queries.failures(job) if reason in {None, failure.reason})

    def export_failures(self, job: str, file: str | Path, *, reason: str | None = None) -> int:
        """Write failures to a .jsonl or .csv file that `submit` reads again, for its owner alone; how many."""
        return write_failures(lambda: self.failures(job, reason=reason), Path(file))

    def results(
        self,
        job: str,
        *,
        where: Iterable[str] = (),
        failed: bool = False,
        sort: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Result]:
        """What is known of each image with an end, in the order of the images; memory stays flat.

        Args:
            job: Its id.
            where: Only images of which all of it holds: `class=281`, `uri!=*.png`, `probability<0.5`, …
            failed: Only failed ones.
            sort: In the order of a column, such as `probability`, or `-probability` for the greatest first.
            limit: Only the first so many.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It lies in another store, or something cannot be asked.
            StoreError, JobError, WorkerError: The store cannot be used.
        """
        return self._made(job).results(Choice.of(where, failed=failed, sort=sort, limit=limit))

    def export(
        self,
        job: str,
        file: str | Path | BinaryIO,
        *,
        format: Format | None = None,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        failed: bool = False,
        sort: str | None = None,
        limit: int | None = None,
    ) -> int:
        """Write what `results` gives as `jsonl`, `csv` or `parquet` (by the file's name), as a stream; how many images.

        A file is there whole or not at all. `only` leaves out the addresses of other kinds of pictures.
        """
        named = Path(file) if isinstance(file, str) else file
        return self._made(job).export(named, format, only, Choice.of(where, failed=failed, sort=sort, limit=limit))

    def download(
        self,
        job: str,
        output_dir: str | Path,
        *,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        sort: str | None = None,
        limit: int | None = None,
        progress: Callable[[Path], None] | None = None,
    ) -> Downloaded:
        """Fetch the pictures there are, as `{stem}-{network}-{kind}.{format}`, less those that are here already.

        Args:
            job: Its id.
            output_dir: The folder.
            only: Only these kinds: `cam`, `heatmap`, …
            where: As `results`.
            sort: As `results`, with `limit`: of which images.
            limit: Of the first so many images.
            progress: Called with each file that is there.

        Returns:
            The files, a list; its `already` says how many were there before.
        """
        files = Downloaded()
        for fetched in self.fetch(job, output_dir, only=only, where=where, sort=sort, limit=limit):
            files.append(fetched.path)
            files.already += fetched.already
            if progress:
                progress(fetched.path)
        return files

    def fetch(
        self,
        job: str,
        output_dir: str | Path,
        *,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        sort: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Fetched]:
        """The same as a stream, for millions of pictures."""
        if not str(output_dir):
            raise UsageError("the output folder needs a name")
        return self._made(job).fetch(Path(output_dir), only, Choice.of(where, sort=sort, limit=limit))

    def urls(
        self,
        job: str,
        *,
        expires_s: float = 3600,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        sort: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Link]:
        """Presigned addresses of pictures, at which anybody can read them for up to 7 days."""
        return self._made(job).urls(expires_s, only, Choice.of(where, sort=sort, limit=limit))

    def _made(self, job: str) -> JobResults:
        self._same_store(job)
        spec = self._spec(job)

        def ended() -> int:
            status = self.status(job)
            return status.done + status.failed

        def check(where: ResultFilter) -> None:
            status = self.table.queries.status(job)
            for one in where.conditions:
                if one.field == "reason" and not one.is_pattern:
                    check_reason(one.value, status.failures)
            # Asked after the count: what is done meanwhile only adds to it.
            check_classes(where, spec, self.table.queries.histogram(job), status.done)

        return JobResults(
            self.storage,
            job,
            spec,
            states=partial(self.table.queries.states_at, job),
            ended=ended,
            check=check,
            since=self.table.queries.since(job),
        )

    def list(
        self, *, limit: int = 20, offset: int = 0, state: Sequence[str] = (), name: str | None = None
    ) -> Sequence[JobStatus]:
        """Jobs, newest first.

        Args:
            limit: At most so many.
            offset: Left out are so many of the newest.
            state: Only jobs in one of these states.
            name: Only jobs whose id matches, with `*` and `?`.

        Raises:
            UsageError: One of the numbers is below 0 or beyond 64 bits.
        """
        for option, number in (("limit", limit), ("offset", offset)):
            if not 0 <= number <= MAX_COUNT:
                raise UsageError(f"{option} must be 0 to {MAX_COUNT:,}")

        def keep(status: JobStatus) -> bool:
            return (not state or status.state in state) and (name is None or fnmatchcase(status.job, name))

        found = self.table.queries.jobs(limit=limit, offset=offset, keep=keep)
        with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="look") as pool:
            return list(pool.map(self._with_objects, found))
