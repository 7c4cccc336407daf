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
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from producer.audit import Finding, audit
from producer.audit import repair as set_right
from producer.jobs.control import BROKEN_OFF, no_such
from producer.jobs.errors import ServiceError, UnknownJob, UsageError, WorkerError
from producer.jobs.finalise import begin, finalise
from producer.jobs.scripts import connect
from producer.jobs.settings import Connections, read
from producer.jobs.spec import OUTPUTS, Failure, JobSpec, JobStatus, Result, checked_name, new_job_id
from producer.jobs.states import TERMINAL, JobState
from producer.jobs.storage import Storage
from producer.jobs.table import JobTable
from producer.results import download, read_results
from producer.retry import retry_failed
from producer.sources import Source, expand
from producer.submit import Progress, Publish, make_spec, place_weights, read_labels, send

#: How often `watch` looks, in seconds: quick for a handful of photos, light for a run of hours.
_FIRST_LOOK_S = 0.2
_SLOWEST_LOOK_S = 2.0
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
        images: Iterable[str | os.PathLike[str] | Source],
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
        chunk_size: int = 64,
        name: str | None = None,
        queue: str = "default",
        progress: Progress | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> str:
        """Send images; returns when all are in the job table, long before they are explained.

        Args:
            images: Addresses (`s3://`, `http(s)://`, `file://`), local files and folders; the latter two are uploaded.
                A `producer.sources.Source` gives one a class or an id of its own.
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
            chunk_size: Images a chunk, 1 to 512.
            name: The job's name and id; submitting the same again under it continues instead of doubling.
            queue: `high`, `default` or `low`.
            progress: Called with images sent and images in all.
            waiting: Called with a sentence while Redis is too full to take more.

        Returns:
            The job's id.

        Raises:
            UsageError: Something typed cannot be used; nothing was sent.
            ServiceError, JobError, WorkerError: Redis or the object store cannot be used.
        """
        job = new_job_id() if name is None else checked_name(name)
        parameters = {
            "network": network,
            "layer": layer_name,
            "class_id": class_id,
            "class_name": class_name,
            "top_k": top_k,
            "labels": read_labels(None if labels is None else Path(labels)),
            "method": method,
            "precision": precision,
            "fit": fit,
            "output_size": output_size,
            "raw": raw,
            "outputs": tuple(dict.fromkeys(outputs)),
            "format": format,
            "chunk_size": chunk_size,
            "queue": queue,
        }
        if class_id is not None and class_name is not None:
            raise UsageError("give --class-id or --class-name, not both")
        if top_k > 1 and (class_id is not None or class_name is not None):
            raise UsageError("--top-k takes the most likely classes: leave --class-id and --class-name out")
        # Everything that was typed is checked before anything is sent.
        make_spec(**parameters)
        found = expand(images)
        self.storage.check()
        weights, digest = place_weights(None if weight_path is None else os.fspath(weight_path), self.storage)
        spec = make_spec(**parameters, weights=weights, weights_sha256=digest, store=self.storage.place)
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
                    sources=found,
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
            return job
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
        """Go on with a paused job; workers hear of it within their reconciler's interval. Errors as `cancel`."""
        return self._not_ended(job, self.table.control.resume(job))

    def retry(self, job: str, *, reason: str | None = None) -> int:
        """Try the failed images of a job that has ended once more, and nothing else; how many.

        Args:
            job: Its id.
            reason: Only images that failed for it, such as `fetch` or `timeout`.

        Raises:
            UnknownJob: There is no such job, or its lifetime is over.
            UsageError: It has not ended, was cancelled, or nothing failed.
        """
        return retry_failed(self.table, self._publisher(job, self._spec(job).queue), job, reason=reason)

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

    def failures(self, job: str) -> Iterator[Failure]:
        """Images of a job that failed, each with its reason."""
        return self.table.failures(job)

    def results(self, job: str) -> Iterator[Result]:
        """What is known of each image with an end, in the order of the images."""
        self._same_store(job)
        return read_results(self.storage, job)

    def download(
        self, job: str, output_dir: str | Path, *, progress: Callable[[Path], None] | None = None
    ) -> list[Path]:
        """Fetch the pictures there are, as `{stem}-{network}-{kind}.{format}`; returns the files written."""
        if not str(output_dir):
            raise UsageError("the output folder needs a name")
        self._same_store(job)
        return download(self.storage, job, Path(output_dir), progress=progress)

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

    def _publisher(self, job: str, name: str) -> Publish:
        # Celery takes 0.2 s to import, and only submit needs it.
        from producer.jobs import queue

        app = queue.make_app(self._settings.redis_url.get_secret_value())

        def publish(chunk: int, published_at: float) -> None:
            # The job table knows that the chunk waits; the reconciler sends the pointer when the broker is back.
            with suppress(queue.BrokerAway):
                queue.publish(app, job, chunk, queue=name, published_at=published_at)

        return publish

    def list(self, *, limit: int = 20, offset: int = 0) -> Sequence[JobStatus]:
        """Jobs, newest first."""
        return self.table.jobs(limit=limit, offset=offset)
