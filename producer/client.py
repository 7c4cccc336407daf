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
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import redis

from producer.jobs.control import BROKEN_OFF
from producer.jobs.errors import ServiceError, UsageError
from producer.jobs.scripts import connect
from producer.jobs.settings import Connections, read
from producer.jobs.spec import OUTPUTS, Failure, JobStatus, Result, checked_name, new_job_id
from producer.jobs.storage import Storage
from producer.jobs.table import JobTable
from producer.results import download, read_results
from producer.sources import Source, expand
from producer.submit import Progress, Publish, make_spec, place_weights, read_labels, send

#: How often `watch` looks, in seconds: quick for a handful of photos, light for a run of hours.
_FIRST_LOOK_S = 0.2
_SLOWEST_LOOK_S = 2.0
#: How long `watch` waits for a Redis that does not answer.
_AWAY_S = 60.0


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
        self.table.create(job, spec, name=name, lifetime_s=self._settings.job_lifetime_days * 86400)
        try:
            publish = self._publisher(job, spec.queue)
            send(self.table, self.storage, publish, job=job, spec=spec, sources=found, progress=progress)
        except BaseException:
            # Whatever broke it off: a named job can be continued, nobody could ever finish this one.
            if name is None:
                self.table.fail(job, BROKEN_OFF)
            raise
        return job

    def status(self, job: str) -> JobStatus:
        """Look at a job. Raises UnknownJob when there is none of that name."""
        return self.table.status(job)

    def watch(self, job: str) -> Iterator[JobStatus]:
        """Look at a job again and again; the last status is that of its end. A Redis that restarts is waited for.

        Raises:
            UnknownJob: There is no such job.
            ServiceError: Redis has been away for a minute.
        """
        pause_s, seen = _FIRST_LOOK_S, time.monotonic()
        while True:
            try:
                status = self.status(job)
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
                if time.monotonic() - seen > _AWAY_S:
                    raise ServiceError(f"Redis has been away for {_AWAY_S:.0f} s ({type(error).__name__})") from None
            else:
                seen = time.monotonic()
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
        self.status(job)
        found = self.table.spec(job)
        if found and found[0].store not in {"", self.storage.place}:
            raise UsageError(
                f"the pictures of job {job} are in {found[0].store}, not in {self.storage.place}: "
                "correct GRADCAM_S3_BUCKET and GRADCAM_S3_PREFIX"
            )

    def _publisher(self, job: str, name: str) -> Publish:
        # Celery takes 0.2 s to import, and only submit needs it.
        from producer.jobs import queue

        app = queue.make_app(self._settings.redis_url.get_secret_value())

        def publish(chunk: int, published_at: float) -> None:
            queue.publish(app, job, chunk, queue=name, published_at=published_at)

        return publish

    def list(self, *, limit: int = 20, offset: int = 0) -> Sequence[JobStatus]:
        """Jobs, newest first."""
        return self.table.jobs(limit=limit, offset=offset)
