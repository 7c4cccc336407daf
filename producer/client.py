"""The Python client: the same verbs as the `gradcam` command.

from producer.client import Client

client = Client.from_env()
job = client.submit(["photos/", "s3://bucket/cat.jpg"], network="resnet50")
for status in client.watch(job):
    print(status.done, "of", status.total)
client.download(job, "results")
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from fnmatch import fnmatchcase
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from producer.audit import Finding, audit
from producer.audit import repair as set_right
from producer.download import Downloaded, Fetched
from producer.export import Format
from producer.failures import write_failures
from producer.jobs import keys
from producer.jobs.control import BROKEN_OFF, no_such
from producer.jobs.errors import ServiceError, UnknownJob, UsageError, WorkerError
from producer.jobs.finalise import begin, finalise, recorded_spec
from producer.jobs.scripts import connect
from producer.jobs.settings import Connections, read
from producer.jobs.spec import OUTPUTS, Failure, JobSpec, JobStatus, Result, checked_name, new_job_id
from producer.jobs.states import TERMINAL, JobState
from producer.jobs.storage import DELETED_AT_ONCE, Storage
from producer.jobs.table import JobTable
from producer.made import Link, Made
from producer.plan import Plan, plan
from producer.retry import retry_failed
from producer.sources import Reading, Source, Sources, open_sources
from producer.submit import (
    Progress,
    Publish,
    fitting_size,
    line_maker,
    make_spec,
    place_weights,
    read_labels,
    send,
)

#: How often `watch` looks, in seconds: quick for a handful of photos, light for a run of hours.
_FIRST_LOOK_S = 0.2
_SLOWEST_LOOK_S = 2.0
#: Images a chunk where nobody knows how fast the network is.
_FIRST_CHUNK_SIZE = 64
#: How often a submission begins anew because Redis was wiped under it.
_LIVES = 3


class Client:
    """Send images to be explained and see what became of them. Safe to share between threads."""

    def __init__(self, settings: Connections) -> None:
        self._settings = settings

    @classmethod
    def from_env(cls) -> Client:
        """Make a client from `GRADCAM_*` and `AWS_*` environment variables.

        Raises:
            SettingsError: Names every missing, wrong and misspelt setting at once.
        """
        return cls(read(Connections))

    def submit(
        self,
        images: Iterable[str | os.PathLike[str] | Source] | Sources,
        *,
        network: str = "resnet50",
        weight_path: str | os.PathLike[str] | None = None,
        layer_name: str = "last-conv",
        class_id: int | None = None,
        class_name: str | None = None,
        top_k: int = 1,
        labels: str | os.PathLike[str] | None = None,
        method: str = "gradcam",
        precision: str = "fp32",
        fit: str = "squash",
        output_size: str = "input",
        raw: bool = False,
        outputs: Iterable[str] = OUTPUTS,
        format: str = "jpg",
        chunk_size: int | None = None,
        name: str | None = None,
        queue: str = "default",
        pack: str = "none",
        reading: Reading | None = None,
        progress: Progress | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> str:
        """Send images; returns when all are in the job table, long before they are explained.

        Args:
            images: Addresses (`s3://`, `http(s)://`, `file://`), local files and folders, which are uploaded, lists
                (.txt, .csv, .tsv, .jsonl, .parquet) and prefixes (`s3://bucket/prefix/`). A `producer.sources.Source`
                gives one image a class or an id of its own.
            network: `resnet50`, `vgg16`, … or `timm/NAME`.
            weight_path: Weights: a local file (uploaded once by content), an address, a torchvision weights name, or
                `random`; torchvision's default weights when absent.
            layer_name: `last-conv`, `last-features` or the dotted name of a module; several by commas are averaged.
            class_id: The class that drives all four pictures; the predicted one when absent.
            class_name: The same by its name.
            top_k: Pictures of so many of the most likely classes, where no class is given.
            labels: A file of class names, one a line, in place of those that come with the weights.
            method: `gradcam`, `gradcam++`, `hirescam`, `layercam` or `xgradcam`.
            precision: `fp32`, `bf16` or (on a GPU) `fp16`.
            fit: `squash`, `crop` or `pad`: how a picture is brought to the network's size.
            output_size: `input` or `original`: the size of the pictures made.
            raw: Also store the map and the guided gradient as numbers.
            outputs: Which of `heatmap`, `cam`, `gb`, `cam_gb`.
            format: `jpg` or `png`.
            chunk_size: Images a chunk, 1 to 512; about ten seconds of work when absent.
            name: The job's name and id; submitting the same again under it continues instead of doubling.
            queue: `high`, `default` or `low`.
            pack: `none`, or `tar`: the pictures of a chunk in one webdataset shard.
            reading: Which columns of lists mean what, and which images to take.
            progress: Called with images sent, and images in all where that is known.
            waiting: Called with a sentence while Redis is too full to take more.

        Returns:
            The job's id.

        Raises:
            UsageError: Something typed cannot be used; nothing was sent.
            ServiceError, JobError, WorkerError: Redis or the object store cannot be used.
        """
        asked = _spoken(
            network=network,
            layer_name=layer_name,
            class_id=class_id,
            class_name=class_name,
            top_k=top_k,
            labels=labels,
            method=method,
            precision=precision,
            fit=fit,
            output_size=output_size,
            raw=raw,
            outputs=outputs,
            format=format,
            queue=queue,
            pack=pack,
        )
        job = new_job_id() if name is None else checked_name(name)
        parameters = self._parameters(job, name, chunk_size, **asked)
        with self._opened(images, reading) as sources:
            self.storage.check()
            weights, digest = place_weights(None if weight_path is None else os.fspath(weight_path), self.storage)
            spec = make_spec(**parameters, weights=weights, weights_sha256=digest, store=self.storage.place)
            self._send(job, name, spec, sources, progress, waiting)
        return job

    def plan(
        self,
        images: Iterable[str | os.PathLike[str] | Source] | Sources,
        reading: Reading | None = None,
        **parameters: Any,
    ) -> Plan:
        """Say what a submission would send, without sending it; takes what `submit` takes.

        Raises:
            UsageError: Something typed cannot be used.
        """
        name, chunk_size = parameters.pop("name", None), parameters.pop("chunk_size", None)
        job = name or new_job_id()
        weight_path = parameters.pop("weight_path", None)
        spec = make_spec(
            **self._parameters(job, name, chunk_size, **_spoken(**parameters)), weights=weight_path or "DEFAULT"
        )
        with self._opened(images, reading) as sources:
            return plan(sources, line_maker(self.storage, job), spec)

    def _opened(
        self, images: Iterable[str | os.PathLike[str] | Source] | Sources, reading: Reading | None
    ) -> AbstractContextManager[Sources]:
        if isinstance(images, Sources):
            return nullcontext(images)  # whoever opened it closes it
        return open_sources(images, reading or Reading(), storage=lambda: self.storage)

    def _parameters(self, job: str, name: str | None, chunk_size: int | None, **asked: Any) -> dict[str, Any]:
        """Check what was typed before anything is sent, and find the size of chunks."""
        if asked.get("class_id") is not None and asked.get("class_name") is not None:
            raise UsageError("give --class-id or --class-name, not both")
        if asked.get("top_k", 1) > 1 and (asked.get("class_id") is not None or asked.get("class_name") is not None):
            raise UsageError("--top-k takes the most likely classes: leave --class-id and --class-name out")
        asked["chunk_size"] = _FIRST_CHUNK_SIZE if chunk_size is None else chunk_size
        spec = make_spec(**asked)
        if chunk_size is None:
            # A job that is continued keeps the size it began with: what is in which chunk must not change.
            found = self.table.spec(job) if name is not None else None
            before = found[0] if found else recorded_spec(self.storage, job) if name is not None else None
            asked["chunk_size"] = before.chunk_size if before else fitting_size(self.table.roster.speed(spec.network))
        return asked

    def _send(
        self,
        job: str,
        name: str | None,
        spec: JobSpec,
        sources: Sources,
        progress: Progress | None,
        waiting: Callable[[str], None] | None,
    ) -> None:
        if name is not None:
            begin(self.storage, job, spec)
        for _ in range(_LIVES):
            self.table.create(job, spec, name=name, lifetime_s=self._settings.job_lifetime_days * 86400)
            try:
                send(
                    self.table,
                    self.storage,
                    self._publisher(job, spec.queue),
                    job=job,
                    spec=spec,
                    sources=sources,
                    count=sources.count,
                    progress=progress,
                    waiting=waiting,
                )
            except UnknownJob:
                continue  # Redis was wiped meanwhile.
            except BaseException:
                # Whatever broke it off: a named job can be continued, nobody could ever finish this one.
                if name is None:
                    self.table.fail(job, BROKEN_OFF)
                    self._finalise(job)
                raise
            # Where an earlier life of the job had done everything, no worker will come along to end it.
            self._finalise(job)
            return
        raise ServiceError(f"Redis lost job {job} again and again: check its persistence (appendonly yes)")

    # -- control ---------------------------------------------------------------------------------------------------

    def cancel(self, job: str) -> JobStatus:
        """Stop a job for good: what is done stays, workers stop after the batch in hand.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It has ended otherwise.
        """
        state = self.table.control.cancel(job)
        if state in TERMINAL and state is not JobState.CANCELLED:
            raise UsageError(f"job {job} has ended already: {state}")
        self._finalise(job)
        return self.status(job)

    def pause(self, job: str) -> JobStatus:
        """Hand out nothing more of a job until it is resumed. Errors as `cancel`."""
        return self._not_ended(job, self.table.control.pause(job))

    def resume(self, job: str) -> JobStatus:
        """Go on with a paused job. Errors as `cancel`."""
        status = self._not_ended(job, self.table.control.resume(job))
        self._send_missing(self._spec(job).queue)
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
        queue = self._spec(job).queue
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
        status = self.status(job)
        if not status.ended:
            raise UsageError(f"job {job} has not ended, it is {status.state}: `gradcam cancel {job}` first")
        count = 0
        if objects:
            self._same_store(job)
            names = self.storage.keys(keys.job_prefix(self.storage.prefix, job))
            while part := list(islice(names, DELETED_AT_ONCE)):
                self.storage.delete(part)
                count += len(part)
                if progress:
                    progress(count)
        self.table.control.delete(job)
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

    def _finalise(self, job: str) -> None:
        """Enter the end where nothing but the end is left; a worker's reconciler would do it a little later."""
        with suppress(WorkerError):
            finalise(self.table, self.storage, job, f"client-{uuid.uuid4().hex}")

    # -- looking ---------------------------------------------------------------------------------------------------

    def status(self, job: str) -> JobStatus:
        """Look at a job. Raises UnknownJob when there is none of that name."""
        return self.table.status(job)

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
                raise TimeoutError(f"job {job} is still {status.state} after {timeout_s:g} s")
        raise AssertionError("watch ends with an ended status")

    def failures(self, job: str, *, reason: str | None = None) -> Iterator[Failure]:
        """Images of a job that failed, each with its reason; with `reason` only those that failed for it."""
        return (failure for failure in self.table.failures(job) if reason in {None, failure.reason})

    def export_failures(self, job: str, file: str | Path, *, reason: str | None = None) -> int:
        """Write failures to a .jsonl or .csv file that `submit` reads again, for its owner alone; how many."""
        return write_failures(lambda: self.failures(job, reason=reason), Path(file))

    def results(self, job: str, *, where: Iterable[str] = (), failed: bool = False) -> Iterator[Result]:
        """What is known of each image with an end, in the order of the images; memory stays flat.

        Args:
            job: Its id.
            where: Only images of which all of it holds: `class=281`, `uri=*.png`, `probability<0.5`, …
            failed: Only failed ones.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It lies in another store, or something cannot be asked.
            StoreError, JobError, WorkerError: The store cannot be used.
        """
        return self._made(job).results(where, failed=failed)

    def export(
        self,
        job: str,
        file: str | Path | BinaryIO,
        *,
        format: Format | None = None,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        failed: bool = False,
    ) -> int:
        """Write what `results` gives as `jsonl`, `csv` or `parquet` (by the file's name), as a stream; how many images.

        A file is there whole or not at all. `only` leaves out the addresses of other kinds of pictures.
        """
        named = Path(file) if isinstance(file, str) else file
        return self._made(job).export(named, format, only, where, failed=failed)

    def download(
        self,
        job: str,
        output_dir: str | Path,
        *,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        progress: Callable[[Path], None] | None = None,
    ) -> Downloaded:
        """Fetch the pictures there are, as `{stem}-{network}-{kind}.{format}`, less those that are here already.

        Args:
            job: Its id.
            output_dir: The folder.
            only: Only these kinds: `cam`, `heatmap`, …
            where: As `results`.
            progress: Called with each file that is there.

        Returns:
            The files, a list; its `already` says how many were there before.
        """
        files = Downloaded()
        for fetched in self.fetch(job, output_dir, only=only, where=where):
            files.append(fetched.path)
            files.already += fetched.already
            if progress:
                progress(fetched.path)
        return files

    def fetch(
        self, job: str, output_dir: str | Path, *, only: Iterable[str] = (), where: Iterable[str] = ()
    ) -> Iterator[Fetched]:
        """The same as a stream, for millions of pictures."""
        if not str(output_dir):
            raise UsageError("the output folder needs a name")
        return self._made(job).fetch(Path(output_dir), only, where)

    def urls(
        self, job: str, *, expires_s: float = 3600, only: Iterable[str] = (), where: Iterable[str] = ()
    ) -> Iterator[Link]:
        """Presigned addresses of pictures, at which anybody can read them for up to 7 days."""
        return self._made(job).urls(expires_s, only, where)

    def _made(self, job: str) -> Made:
        self._same_store(job)
        return Made(self.storage, job, self._spec(job))

    @cached_property
    def table(self) -> JobTable:
        """The job table."""
        return JobTable(connect(self._settings))

    @cached_property
    def storage(self) -> Storage:
        """Our bucket."""
        return Storage.from_settings(self._settings)

    def _same_store(self, job: str) -> None:
        store = self._spec(job).store
        if store not in {"", self.storage.place}:
            raise UsageError(
                f"the pictures of job {job} are in {store}, not in {self.storage.place}: "
                "correct GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )

    def _spec(self, job: str) -> JobSpec:
        found = self.table.spec(job)
        if found is None:
            raise UnknownJob(no_such(job))
        return found[0]

    def _send_missing(self, queue: str) -> None:
        """Send messages for chunks that wait without one now; what is on its way makes a few too many, harmlessly."""
        while missing := self.table.deficit(queue, grace_s=0):
            for job, chunk in missing:
                if not self._send_message(queue, job, chunk, self.table.roster.now()):
                    return

    def _publisher(self, job: str, queue: str) -> Publish:
        return partial(self._send_message, queue, job)

    def _send_message(self, name: str, job: str, chunk: int, published_at: float) -> bool:
        """Send a pointer; False when it cannot be sent: then the reconciler does it, for the job table knows."""
        from producer.jobs import queue

        try:
            queue.publish(self._app, job, chunk, queue=name, published_at=published_at)
        except queue.BrokerAway:
            return False
        return True

    @cached_property
    def _app(self) -> Any:
        # Celery takes 0.2 s to import, and most verbs do without.
        from producer.jobs import queue

        return queue.make_app(self._settings.redis_url.get_secret_value())

    def list(
        self, *, limit: int = 20, offset: int = 0, state: Sequence[str] = (), name: str | None = None
    ) -> Sequence[JobStatus]:
        """Jobs, newest first.

        Args:
            limit: At most so many.
            offset: Left out are so many of the newest.
            state: Only jobs in one of these states.
            name: Only jobs whose id matches, with `*` and `?`.
        """

        def keep(status: JobStatus) -> bool:
            return (not state or status.state in state) and (name is None or fnmatchcase(status.job, name))

        return self.table.jobs(limit=limit, offset=offset, keep=keep)


def _spoken(
    *,
    layer_name: str = "last-conv",
    labels: str | os.PathLike[str] | None = None,
    outputs: Iterable[str] = OUTPUTS,
    **others: Any,
) -> dict[str, Any]:
    """What was typed, in the words of a job's spec. Raises UsageError: the labels cannot be read."""
    return {
        **others,
        "layer": layer_name,
        "labels": read_labels(None if labels is None else Path(labels)),
        "outputs": tuple(dict.fromkeys(outputs)),
    }
