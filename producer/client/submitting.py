"""How the client sends images: what was typed is checked, the job is made, its images are streamed into it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from producer.client.connections import Connected
from producer.input.sources import ReadOptions, Source, Sources, open_sources
from producer.jobs.model.errors import JobEnded, ServiceError, SourceChanged, UnknownJob, UsageError
from producer.jobs.model.network_names import check_network
from producer.jobs.model.spec import OUTPUTS, JobSpec, checked_name, new_job_id
from producer.jobs.model.states import Ingest, JobState
from producer.jobs.store.finalize import begin, recorded_spec
from producer.jobs.table.claims import CreatedJob
from producer.jobs.table.user_actions import BROKEN_OFF, refusal
from producer.submission.plan import Plan, plan
from producer.submission.submit import (
    Progress,
    fitting_size,
    line_maker,
    make_spec,
    numbers,
    place_weights,
    read_labels,
    send,
)

#: How often a submission begins anew because Redis was wiped under it.
_LIVES = 3


class Submitting(Connected):
    """The part of the client that submits."""

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
        explain: str = "predicted",
        method: str = "gradcam",
        precision: str = "fp32",
        input_size: str | int | Iterable[int] | None = None,
        mean: str | float | Iterable[float] | None = None,
        std: str | float | Iterable[float] | None = None,
        fit: str = "squash",
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
            network: `resnet50`, `vgg16`, … or `timm/NAME`.
            weight_path: Weights: a local file (uploaded once by content), an address, a torchvision weights name, or
                `random`; torchvision's default weights when absent.
            layer_name: `last-conv`, `last-features` or the dotted name of a module; several by commas are averaged.
            class_id: The class that drives all four pictures; the predicted one when absent.
            class_name: The same by its name.
            top_k: Pictures of so many of the most likely classes, where no class is given.
            labels: A file of class names, one a line, in place of those that come with the weights.
            explain: Of an image with a label the class `predicted` (or asked for), that of the `label`, or `both`.
            method: `gradcam`, `gradcam++`, `hirescam`, `layercam` or `xgradcam`.
            precision: `fp32`, `bf16` or (on a GPU) `fp16`.
            input_size: What the network reads, in pixels: `320`, `(224, 320)` or `"224x320"` (height, width), in place
                of the size that belongs to the network.
            mean: What is subtracted from red, green and blue in [0, 1]: three numbers, or one for all three.
            std: What they are divided by then. Both in place of those that belong to the network.
            fit: `squash`, `crop` or `pad`: how a picture is brought to the network's size.
            output_size: `input` or `original`: the size of the pictures made.
            raw: Also store the map and the guided gradient as numbers.
            outputs: Which of `heatmap`, `cam`, `gb`, `cam_gb`.
            format: `jpg` or `png`.
            chunk_size: Images a chunk, 1 to 512; about ten seconds of work when absent.
            name: The job's name and id; submitting the same again under it continues instead of doubling.
            queue: `high`, `default` or `low`.
            pack: `none`, or `tar`: the pictures of a chunk in one webdataset shard.
            any_network: Whether the workers alone say what a network is called; for those that are newer than our list.
            reading: Which columns of lists mean what, and which images to take.
            progress: Called with images sent, and images in all where that is known.
            waiting: Called with a sentence while Redis is too full to take more.

        Returns:
            The job's id.

        Raises:
            UsageError: Something typed cannot be used; nothing was sent.
            ServiceError, JobError, WorkerError: Redis or the object store cannot be used.
        """
        check_typed(
            _reading_of(images, reading),
            network=network,
            class_id=class_id,
            class_name=class_name,
            top_k=top_k,
            any_network=any_network,
        )
        asked = _spoken(
            network=network,
            layer_name=layer_name,
            class_id=class_id,
            class_name=class_name,
            top_k=top_k,
            labels=labels,
            explain=explain,
            method=method,
            precision=precision,
            input_size=input_size,
            mean=mean,
            std=std,
            fit=fit,
            output_size=output_size,
            raw=raw,
            outputs=outputs,
            format=format,
            queue=queue,
            pack=pack,
        )
        job = new_job_id() if name is None else checked_name(name)
        parameters = self._parameters(name, chunk_size, **asked)
        self._ready()
        with self._opened(images, reading) as sources:
            self.storage.check()
            weights, digest = place_weights(None if weight_path is None else os.fspath(weight_path), self.storage)
            spec = make_spec(**parameters, weights=weights, weights_sha256=digest, store=self.storage.place)
            self._send(job, name, spec, sources, progress, waiting)
        return job

    def plan(
        self,
        images: Iterable[str | os.PathLike[str] | Source] | Sources,
        reading: ReadOptions | None = None,
        **parameters: Any,
    ) -> Plan:
        """Say what a submission would send, without sending it; takes what `submit` takes.

        Raises:
            UsageError: Something typed cannot be used.
        """
        name, chunk_size = parameters.pop("name", None), parameters.pop("chunk_size", None)
        job = name or new_job_id()
        check_typed(_reading_of(images, reading), **parameters)
        parameters.pop("any_network", None)
        weight_path = parameters.pop("weight_path", None)
        spec = make_spec(
            **self._parameters(name, chunk_size, **_spoken(**parameters)), weights=weight_path or "DEFAULT"
        )
        with self._opened(images, reading) as sources:
            found = plan(sources, line_maker(self.storage, job), spec)
            return found.model_copy(update={"bad_rows": sources.bad_count, "left_out": dict(sources.left_out)})

    def _go_on(self, job: str, queue: str) -> None:
        """Go on with a job that is there: also with one that failed while it was being sent."""
        self._finalize(job)
        status = self.table.queries.status(job)
        if status.state is JobState.CANCELLED:
            raise UsageError(refusal(job, status.state))
        if status.state is not JobState.FAILED:
            return
        if status.ingest is Ingest.OPEN:
            self.table.actions.retry(job, queue, retry_id=uuid.uuid4().hex, mode="submit")
            return
        raise UsageError(f"job {job} failed as a whole ({status.error}): `gradcam retry {job}` goes on with it")

    def _opened(
        self, images: Iterable[str | os.PathLike[str] | Source] | Sources, reading: ReadOptions | None
    ) -> AbstractContextManager[Sources]:
        if isinstance(images, Sources):
            return nullcontext(images)  # whoever opened it closes it
        return open_sources(images, reading or ReadOptions(), storage=lambda: self.storage)

    def _parameters(self, name: str | None, chunk_size: int | None, **asked: Any) -> dict[str, Any]:
        """Check what was typed before anything is sent, and find the size of chunks."""
        asked["chunk_size"] = fitting_size(None) if chunk_size is None else chunk_size
        spec = make_spec(**asked)
        if chunk_size is None:
            # A job that is continued keeps the size it began with: what is in which chunk must not change.
            before = None if name is None else self._spec_before(name)
            asked["chunk_size"] = before.chunk_size if before else fitting_size(self.table.registry.speed(spec.network))
        return asked

    def _spec_before(self, name: str) -> JobSpec | None:
        """What a job of that name computes, if there is or was one."""
        found = self.table.queries.spec(name)
        return found[0] if found else recorded_spec(self.storage, name)

    def _send(
        self,
        job: str,
        name: str | None,
        spec: JobSpec,
        sources: Sources,
        progress: Progress | None,
        waiting: Callable[[str], None] | None,
    ) -> None:
        for _ in range(_LIVES):
            created = self.table.create(job, spec, name=name, lifetime_s=self._settings.job_lifetime_days * 86400)
            since = created.since if name is None else self._begin(job, spec, created)
            if not created.new:
                self._go_on(job, spec.queue)
            try:
                send(
                    self.table,
                    self.storage,
                    self._publisher(job, spec.queue),
                    job=job,
                    life=created.life,
                    since=since,
                    spec=spec,
                    sources=sources,
                    count=sources.count,
                    progress=progress,
                    waiting=waiting,
                )
            except UnknownJob:
                continue  # Redis was wiped meanwhile.
            except JobEnded as error:
                raise self._why_ended(job, error) from None
            except SourceChanged:
                self._finalize(job)  # what it had before is kept, and has its end
                raise
            except BaseException:
                # Whatever broke it off: a named job can be continued, nobody could ever finish this one.
                if name is None:
                    self.table.fail(job, BROKEN_OFF, life=created.life)
                    self._finalize(job)
                raise
            # Where an earlier life of the job had done everything, no worker will come along to end it.
            self._finalize(job)
            return
        raise ServiceError(f"Redis lost job {job} again and again: check its persistence (appendonly yes)")

    def _begin(self, job: str, spec: JobSpec, created: CreatedJob) -> int:
        """Write down what the job computes, or find what was written before Redis was wiped; nothing is sent yet."""
        try:
            since = begin(self.storage, job, spec, since=created.since)
        except BaseException:
            if created.new:
                self.table.discard(job, spec, created.life)
            raise
        if since != created.since:
            self.table.adopt(job, created.life, since)
        return since

    def _why_ended(self, job: str, error: JobEnded) -> UsageError:
        self._finalize(job)
        status = self.table.queries.status(job)
        if status.error is None:
            return error
        return UsageError(
            f"job {job} failed while it was being sent ({status.error}): mend that, then the same command goes on"
        )


def check_typed(
    reading: ReadOptions,
    *,
    network: str = "resnet50",
    class_id: int | None = None,
    class_name: str | None = None,
    top_k: int = 1,
    explain: str = "predicted",
    any_network: bool = False,
    **_others: object,
) -> None:
    """Refuse what contradicts itself, and a network that nobody knows, before anything is read or sent.

    Raises:
        UsageError: Says which, and what to do.
    """
    if class_id is not None and class_name is not None:
        raise UsageError("give --class-id or --class-name, not both")
    one = "--class-id" if class_id is not None else "--class-name" if class_name is not None else None
    if one and top_k > 1:
        raise UsageError("--top-k takes the most likely classes: leave --class-id and --class-name out")
    if one and reading.class_column is not None:
        raise UsageError(f"--class-column gives each image a class of its own: leave {one} out")
    if explain != "predicted":
        other = one or ("--class-column" if reading.class_column is not None else "--top-k" if top_k > 1 else None)
        if other:
            raise UsageError(f"--explain {explain} explains the class of each image's label: leave {other} out")
    if reading.label_column is not None and reading.label_from is not None:
        raise UsageError("give --label-column or --label-from, not both")
    if not any_network:
        check_network(str(network))


def _reading_of(images: object, reading: ReadOptions | None) -> ReadOptions:
    return images.reading if isinstance(images, Sources) else reading or ReadOptions()


def _spoken(
    *,
    layer_name: str = "last-conv",
    labels: str | os.PathLike[str] | None = None,
    outputs: Iterable[str] = OUTPUTS,
    input_size: str | int | Iterable[int] | None = None,
    mean: str | float | Iterable[float] | None = None,
    std: str | float | Iterable[float] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """What was typed, in the words of a job's spec. Raises UsageError: the labels cannot be read."""
    return {
        **others,
        "layer": layer_name,
        "labels": read_labels(None if labels is None else Path(labels)),
        "outputs": tuple(dict.fromkeys(outputs)),
        "input_size": numbers(input_size, count=2, between="x"),
        "mean": numbers(mean, count=3, between=","),
        "std": numbers(std, count=3, between=","),
    }
