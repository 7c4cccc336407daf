"""The Python client: the same verbs as the `gradcam` command.

from gradcam_queue import Client

client = Client.from_env()
job = client.submit(["photos/", "s3://bucket/cat.jpg"], network="resnet50")
for status in client.watch(job):
    print(status.done, "of", status.total)
client.download(job, "results")
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias

from producer.client.job_actions import JobActions
from producer.client.monitor import JobList, Monitor
from producer.client.services import Services
from producer.input.sources import ReadOptions, Source, Sources, opened, reading_of
from producer.jobs.model import settings
from producer.jobs.model.errors import ServiceError, UsageError
from producer.jobs.model.history import Action
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.spec import OUTPUTS, new_job_id
from producer.jobs.model.status import JobStatus
from producer.jobs.model.worker_record import Drained, WorkerRecord
from producer.jobs.store.bucket import Storage
from producer.jobs.table.table import JobTable
from producer.maintenance.audit import Finding
from producer.output.checks import check_reason
from producer.output.download import Downloaded, Fetched
from producer.output.export import Format
from producer.output.failures import write_failures
from producer.output.job_results import JobResults, PictureUrl, ResultQuery, open_results
from producer.submission.plan import Plan, plan
from producer.submission.recover import Recovered, StoredJob, stored_jobs
from producer.submission.sender import Progress, line_maker
from producer.submission.spec_builder import Request

#: What can be sent: addresses, files, folders, lists and prefixes, or what `open_sources` gave.
Images: TypeAlias = Iterable[str | os.PathLike[str] | Source] | Sources


class Client:
    """Send images to be explained and see what became of them. Safe to share between threads.

    Args:
        settings: Where Redis and the object store are.
    """

    def __init__(self, settings: settings.Connections) -> None:
        self._services = Services(settings)
        self._monitor = Monitor(self._services)
        self._actions = JobActions(self._services, self._monitor)

    @classmethod
    def from_env(cls) -> Self:
        """Make a client from `GRADCAM_*` and `AWS_*` environment variables.

        Raises:
            SettingsError: Names every missing, wrong and misspelt setting at once.
        """
        return cls(settings.read(settings.Connections))

    @property
    def table(self) -> JobTable:
        """The job table."""
        return self._services.table

    @property
    def storage(self) -> Storage:
        """Our bucket."""
        return self._services.storage

    def submit(
        self,
        images: Images,
        *,
        network: str = "resnet50",
        weight_path: str | os.PathLike[str] | None = None,
        weight_key: str | None = None,
        layer_name: str = "last-conv",
        class_id: int | None = None,
        class_name: str | None = None,
        top_k: int = 1,
        classes: str | None = None,
        activation: str | None = None,
        direction: str = "up",
        labels: str | os.PathLike[str] | None = None,
        explain: str = "predicted",
        mask_class: str | None = None,
        max_boxes: int = 5,
        min_score: float = 0.5,
        method: str = "gradcam",
        precision: str = "fp32",
        input_size: str | int | Iterable[int] | None = None,
        mean: str | float | Iterable[float] | None = None,
        std: str | float | Iterable[float] | None = None,
        fit: str = "squash",
        resize_filter: str | None = None,
        output_size: str = "input",
        raw: bool = False,
        outputs: Iterable[str] = OUTPUTS,
        format: str = "jpg",
        chunk_size: int | None = None,
        name: str | None = None,
        queue: str = "default",
        pack: str = "none",
        any_network: bool = False,
        reading: ReadOptions | None = None,
        progress: Progress | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> str:
        """Send images; returns when all are in the job table, long before they are explained.

        Args:
            images: Addresses (`s3://`, `http(s)://`, `file://`), local files and folders, which are uploaded, lists
                (.txt, .csv, .tsv, .jsonl, .parquet) and prefixes (`s3://bucket/prefix/`). A `Source`
                gives one image a class or an id of its own.
            network: resnet50, vgg16, timm/NAME, …; `gradcam-worker networks` lists them.
            weight_path: Weights: a .pth, .pt or .safetensors file (uploaded once), its address, a torchvision weights
                name, or `random`; with `--network hf` a folder, or an address that ends with a slash. With `#sha256=`
                and 64 digits behind an address other weights are refused. Default: torchvision's own, which the worker
                downloads.
            weight_key: Which weights of a file that holds several, as model_ema. Default: the plain weights.
            layer_name: `last-conv`, `last-features`, or any module by its name; several by commas are averaged.
            class_id: Class to explain. Default: the predicted one.
            class_name: The same by its name, such as `tabby`.
            top_k: Explain so many most likely classes.
            classes: above:0.5 explains each class that is more likely, and at least the most likely; at most 5, or as
                many as a --top-k above 1 says.
            activation: What makes a probability of an output; none tells the output itself. One of softmax, sigmoid,
                none. Default: the network's; sigmoid for one output, else softmax.
            direction: Explain what raises a class's output, or what lowers it. One of up, down.
            labels: A file of class names, one a line, for weights with classes of their own.
            explain: Of an image with a label: the predicted class, the label's, or both. One of predicted, label, both.
            mask_class: Of segmentation networks: the class whose pixels are summed. Default: those of the class
                explained.
            max_boxes: Of networks that detect: explain so many boxes an image, those that score most.
            min_score: Leave out boxes that score less.
            method: How maps are made. One of gradcam, gradcam++, hirescam, layercam, xgradcam.
            precision: bf16 is about twice as fast where the hardware has it; fp16 needs a GPU, tf32 one of Ampere or
                later. One of fp32, tf32, bf16, fp16.
            input_size: Pixels that the network reads: 320, or HEIGHTxWIDTH. Default: those that belong to the network.
            mean: What is subtracted from red, green and blue in [0, 1], as 0.485,0.456,0.406. Default: the network's.
            std: What they are divided by then, as 0.229,0.224,0.225. Default: the network's.
            fit: How a picture is brought to the network's size. One of squash, crop, pad.
            resize_filter: How pictures are resized; own: as the weights' own preprocessing does. One of bilinear,
                bilinear-antialias, bicubic-antialias, own. Default: bilinear; with `--network hf` as its folder says.
            output_size: Pictures of the network's size, or of the original's. One of input, original.
            raw: Also store the map and the guided gradient as numbers (.npz).
            outputs: Which pictures, by commas. Segmentation has mask, too.
            format: Picture format. One of jpg, png.
            chunk_size: Images a worker takes at once, 1 to 512; auto makes it about ten seconds of work.
            name: Name of the job; submitting the same again under it continues instead of doubling.
            queue: Priority: more urgent jobs go first. One of high, default, low.
            pack: tar: the pictures of a chunk in one webdataset shard; for millions of images. One of none, tar.
            any_network: Do not look the network up: the workers know newer ones.
            reading: Which columns of lists mean what, and which images to take.
            progress: Called with images sent, and images in all where that is known.
            waiting: Called with a sentence while Redis is too full to take more.

        Returns:
            The job's id.

        Raises:
            UsageError: Something typed cannot be used; nothing was sent.
            ServiceError, JobError, WorkerError: Redis or the object store cannot be used.
        """
        request = Request.read(
            reading_of(images, reading),
            registered=self.registered_networks,
            network=network, weight_path=weight_path, layer_name=layer_name, class_id=class_id, class_name=class_name,
            top_k=top_k, labels=labels, explain=explain, mask_class=mask_class, max_boxes=max_boxes,
            min_score=min_score, method=method, precision=precision, input_size=input_size,
            mean=mean, std=std, fit=fit, resize_filter=resize_filter, output_size=output_size, raw=raw, outputs=outputs,
            format=format, chunk_size=chunk_size, name=name, queue=queue, pack=pack, any_network=any_network,
            weight_key=weight_key, classes=classes, activation=activation, direction=direction,
        )  # fmt: skip
        self._services.check_redis()
        with opened(images, reading, lambda: self.storage) as sources:
            return self._services.submission.submit(request, sources, progress=progress, waiting=waiting)

    def plan(
        self,
        images: Images,
        reading: ReadOptions | None = None,
        **parameters: Any,
    ) -> Plan:
        """Say what a submission would send, without sending it; takes what `submit` takes.

        Raises:
            UsageError: Something typed cannot be used.
        """
        request = Request.read(reading_of(images, reading), registered=self.registered_networks, **parameters)
        size = request.options.chunk_size or self._services.submission.chunk_size(request)
        spec = request.spec(chunk_size=size, weights=str(request.options.weight_path or "DEFAULT"))
        with opened(images, reading, lambda: self.storage) as sources:
            found = plan(sources, line_maker(self.storage, request.options.name or new_job_id()), spec)
            return found.model_copy(update={"bad_rows": sources.bad_count, "left_out": dict(sources.left_out)})

    def registered_networks(self) -> set[str]:
        """Return the networks that workers which are alive have registered; none where Redis cannot be asked now."""
        try:
            return self.table.registry.networks(patience_s=0)
        except ServiceError:
            return set()

    def cancel(self, job: str, *, reason: str | None = None, because: str | None = None) -> JobStatus:
        """Stop a job for good: what is done stays, workers stop after the current batch.

        Args:
            job: Its id.
            reason: Why; `history` keeps it.
            because: What 0.4.0 called `reason`.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It has ended otherwise.
        """
        return self._actions.cancel(job, reason or because)

    def pause(self, job: str, *, reason: str | None = None, because: str | None = None) -> JobStatus:
        """Hand out nothing more of a job until it is resumed. Reasons and errors as `cancel`."""
        return self._actions.pause(job, reason or because)

    def resume(self, job: str, *, reason: str | None = None, because: str | None = None) -> JobStatus:
        """Go on with a paused job. Reasons and errors as `cancel`."""
        return self._actions.resume(job, reason or because)

    def retry(self, job: str, *, only: str | None = None, reason: str | None = None, because: str | None = None) -> int:
        """Try the failed images of a job that has ended once more, and nothing else; how many.

        Args:
            job: Its id.
            only: Only images that failed for it, such as `fetch` or `timeout`.
            reason: Why; `history` keeps it.
            because: What 0.4.0 called `reason`; its `reason` is `only`.

        Raises:
            UnknownJob: There is no such job, or its lifetime is over.
            UsageError: It has not ended, was cancelled, or nothing failed; or the reason seems to be meant for `only`.
        """
        return self._actions.retry(job, only, reason or because)

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
        return self._actions.delete(job, objects=objects, progress=progress)

    def audit(self, job: str, *, repair: bool = False) -> Iterator[Finding]:
        """Compare what is called done with the objects in the store; what is missing and what is extra.

        Args:
            job: Its id.
            repair: Delete extra objects, and explain images with missing ones again.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It cannot be repaired: it has not ended, was cancelled, or only its source knows what is gone.
        """
        return self._actions.audit(job, repair=repair)

    def stored(self) -> Iterator[StoredJob]:
        """The jobs that have a folder in the object store, by their names, and how those come back that Redis lost.

        Raises:
            ServiceError, JobError, WorkerError: Redis or the store cannot be used.
        """
        lifetime_s = self._services.settings.job_lifetime_days * 86400
        return stored_jobs(self.table, self.storage, lifetime_s=lifetime_s)

    def recover(self, job: str, *, waiting: Callable[[str], None] | None = None) -> Recovered:
        """Bring a job that had ended back into Redis from what the store has of it; nothing is explained again.

        Where that was broken off, the same call goes on.

        Args:
            job: Its id.
            waiting: Called with a sentence while Redis is too full to take more.

        Raises:
            UnknownJob: The store knows no such job.
            UsageError: Redis knows it, or only its source knows all of its images: says which command brings it back.
            ServiceError, StoreError, JobError, WorkerError: Redis or the store cannot be used.
        """
        return self._actions.recover(job, waiting)

    def status(self, job: str) -> JobStatus:
        """Look at a job; of one that has ended, also whether its objects are still there.

        Raises:
            UnknownJob: There is none of that name.
        """
        return self._monitor.status(job)

    def watch(self, job: str, *, waiting: Callable[[str], None] | None = None) -> Iterator[JobStatus]:
        """Look at a job again and again; the last status is that of its end. A Redis that restarts is waited for.

        Args:
            job: Its id.
            waiting: Called with a sentence where Redis is away at the beginning, and is waited for.

        Raises:
            UnknownJob: There is no such job.
            UsageError: Its deletion was broken off: it never ends.
            ServiceError: Redis has been away for a minute.
        """
        return self._monitor.watch(job, waiting)

    def wait(self, job: str, *, timeout_s: float | None = None) -> JobStatus:
        """Wait for a job's end.

        Raises:
            TimeoutError: It had not ended by then; it goes on.
            UnknownJob, UsageError, ServiceError: As `watch`.
        """
        return self._monitor.wait(job, timeout_s)

    def failures(self, job: str, *, only: str | None = None, reason: str | None = None) -> Iterator[Failure]:
        """Images of a job that failed, each with its reason; with `only` those that failed for it.

        Args:
            job: Its id.
            only: A reason, such as `fetch` or `timeout`.
            reason: What 0.4.0 called `only`.

        Raises:
            UnknownJob: There is no such job.
            UsageError: No image ever fails for such a reason.
        """
        wanted = reason if only is None else only
        if wanted is not None:
            check_reason(wanted, self.table.queries.status(job).failures)
        return (failure for failure in self.table.queries.failures(job) if wanted in {None, failure.reason})

    def export_failures(self, job: str, file: str | Path, *, only: str | None = None, reason: str | None = None) -> int:
        """Write `failures` to a .jsonl or .csv file that `submit` reads again, for its owner alone; how many."""
        return write_failures(lambda: self.failures(job, only=only, reason=reason), Path(file))

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
        return self._results_of(job).results(ResultQuery.of(where, failed=failed, sort=sort, limit=limit))

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
        return self._results_of(job).export(
            named, format, only, ResultQuery.of(where, failed=failed, sort=sort, limit=limit)
        )

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
        return Downloaded.of(self.fetch(job, output_dir, only=only, where=where, sort=sort, limit=limit), progress)

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
        return self._results_of(job).fetch(Path(output_dir), only, ResultQuery.of(where, sort=sort, limit=limit))

    def urls(
        self,
        job: str,
        *,
        expires_s: float = 3600,
        only: Iterable[str] = (),
        where: Iterable[str] = (),
        sort: str | None = None,
        limit: int | None = None,
    ) -> Iterator[PictureUrl]:
        """Presigned addresses of pictures, at which anybody can read them for up to 7 days."""
        return self._results_of(job).urls(expires_s, only, ResultQuery.of(where, sort=sort, limit=limit))

    def _results_of(self, job: str) -> JobResults:
        self._services.check_store(job)
        return open_results(self.table, self.storage, job)

    def history(self, job: str) -> builtins.list[Action]:
        """List what was done to a job, the latest last, 50 at most: which verb, who, when and why.

        Raises:
            UnknownJob: There is no such job.
        """
        return self.table.queries.history(job)

    def workers(self) -> builtins.list[WorkerRecord]:
        """List the worker processes that are alive: what each is, does, and what keeps it from working."""
        return self._monitor.workers()

    def drain(self, name: str) -> Drained:
        """Ask a worker process to finish and leave, or a launcher with all of its processes.

        It sees the wish with its next sign of life (every `GRADCAM_WORKER_INTERVAL_S`), finishes the batch on the
        device, gives the rest back to others, and ends. Its launcher does not start it again, and ends with its last
        process.

        Args:
            name: Of a process or of a launcher, as `workers` has it.

        Raises:
            UsageError: Nobody who is alive has that name.
        """
        return self._monitor.drain(name)

    def list(self, *, limit: int = 20, offset: int = 0, state: Sequence[str] = (), name: str | None = None) -> JobList:
        """Jobs, newest first; `misnamed` of the list says how many entries of Redis have names that no job can have.

        Args:
            limit: At most so many.
            offset: Left out are so many of the newest.
            state: Only jobs in one of these states.
            name: Only jobs whose id matches, with `*` and `?`.

        Raises:
            UsageError: One of the numbers is below 0 or beyond 64 bits.
        """
        return self._monitor.list(limit=limit, offset=offset, state=state, name=name)
