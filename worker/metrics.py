"""The metrics of this machine's workers, in Prometheus' format: sums over all processes since the launcher started.

Each process writes its counters to files in the launcher's folder (prometheus_client's multiprocess mode, switched on
by `PROMETHEUS_MULTIPROC_DIR`, which the launcher sets); the launcher serves their sums at `--metrics-port`, and beside
them what it knows itself. What concerns each image is summed in memory and written with each commit, as each
number that is written costs 3 to 6 µs.

Each metric is declared here once, and `docs/metrics.md` is made of it.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

if not os.path.isdir(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "/")):
    # The launcher's folder or its disk is gone: a worker works without metrics until its launcher makes it again.
    del os.environ["PROMETHEUS_MULTIPROC_DIR"]

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from producer.jobs.model.metric import Metric
from producer.jobs.model.network_names import HF, TIMM, known
from producer.jobs.model.serving import not_served, served_at
from producer.jobs.model.stage_times import IDLE, WAIT
from producer.jobs.store.s3_errors import DENIED_WRITE, FIRST_TRY, S3Fault

#: Why images fail; another word is a newer version's.
REASONS: Final = ("fetch", "timeout", "image", "model", "store", "crashed_worker", "internal")
#: So many networks at most have a label of their own in one process.
_MOST_NETWORKS: Final = 50
OWN, OTHER = "own", "other"
#: As `open_s3` names them.
_STORE_FAULTS: Final = (
    *(one.name.lower() for one in S3Fault if one is not S3Fault.NOTHING_THERE),
    *(DENIED_WRITE, FIRST_TRY),
)

IMAGES: Final = Metric(
    "gradcam_images",
    "counter",
    "Images that are done or failed, by network (`own`: one of your own, `other`: one beyond the first 50) and reason.",
    ("network", "state", "reason"),
)
STAGE: Final = Metric("gradcam_stage_seconds", "histogram", "Work on one image, by stage.", ("stage",))
WORK: Final = Metric("gradcam_stage_work_seconds", "counter", "Time of work on images, by stage.", ("stage",))
WAITED: Final = Metric("gradcam_stage_wait_seconds", "counter", "Time that images waited for a stage.", ("stage",))
DEVICE_IDLE: Final = Metric(
    "gradcam_device_idle_seconds", "counter", "Time without a batch while a chunk was in flight."
)
BATCH: Final = Metric("gradcam_batch_images", "histogram", "Images in one batch on the device.")
HALVED: Final = Metric("gradcam_batches_halved", "counter", "Batches that did not fit into the device's memory.")
REUSED: Final = Metric("gradcam_models_reused", "counter", "Times that a chunk found its model in memory.")
LOAD: Final = Metric("gradcam_model_load_seconds", "histogram", "Loading one model, from its file to the device.")
WEIGHTS: Final = Metric(
    "gradcam_weights_files", "counter", "Weights files that were found on `disk`, or `fetched`.", ("found",)
)
STORE: Final = Metric(
    "gradcam_store_errors",
    "counter",
    "Requests to S3 that failed, before they were tried again; an object that is not there is none.",
    ("fault",),
)
FAULTS: Final = Metric("gradcam_worker_faults", "counter", "Times that a worker paused, as it could not work.")
PROCESSES: Final = Metric(
    "gradcam_processes", "gauge", "Worker processes, as `gradcam-worker check` finds them.", ("state",)
)
DEATHS: Final = Metric("gradcam_process_deaths", "counter", "Worker processes that ended, though nobody asked them to.")
GPU_USED: Final = Metric(
    "gradcam_gpu_memory_used_bytes", "gauge", "Memory of a GPU that is taken, as the driver says.", ("gpu",)
)
GPU_MEMORY: Final = Metric("gradcam_gpu_memory_bytes", "gauge", "Memory of a GPU.", ("gpu",))
GPU_BUSY: Final = Metric(
    "gradcam_gpu_utilization",
    "gauge",
    "Share of time in which a GPU computed, as the driver says; not of MIG.",
    ("gpu",),
)

#: All of them, in the order of the documentation.
METRICS: Final = (
    *(IMAGES, STAGE, WORK, WAITED, DEVICE_IDLE, BATCH, HALVED, REUSED, LOAD, WEIGHTS, STORE, FAULTS),
    *(PROCESSES, DEATHS, GPU_USED, GPU_MEMORY, GPU_BUSY),
)


class _SummedHistogram(Histogram):
    """A histogram that takes many values at once; to write them one by one costs 5 µs each."""

    def add(self, values: Sequence[float]) -> None:
        """Observe all of them."""
        self._sum.inc(sum(values))
        for bucket, count in Counts(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[bucket].inc(count)


def _counter(metric: Metric, values: Iterable[str] = ()) -> Counter:
    """Make a counter. One that comes up at 5 has not grown, in Prometheus' eyes: where it can be, each begins at 0."""
    counter = Counter(metric.name, metric.words, metric.labels)
    for value in values:
        counter.labels(value)
    return counter


_IMAGES, _WORK, _WAITED, _IDLE, _HALVED = map(_counter, (IMAGES, WORK, WAITED, DEVICE_IDLE, HALVED))
_REUSED, _FAULTS = map(_counter, (REUSED, FAULTS))
_WEIGHTS = _counter(WEIGHTS, ("disk", "fetched"))
_STORE = _counter(STORE, _STORE_FAULTS)
_STAGE = _SummedHistogram(
    STAGE.name,
    STAGE.words,
    STAGE.labels,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
_BATCH = Histogram(BATCH.name, BATCH.words, buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
_LOAD = Histogram(LOAD.name, LOAD.words, buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300))


def committed(
    timings: Mapping[str, float],
    *,
    network: str,
    done: int,
    failed: Mapping[str, int],
    images: Iterable[Mapping[str, float]] = (),
) -> None:
    """Count what was committed.

    Args:
        timings: As `producer/jobs/model/stage_times.py` says, in seconds.
        network: As the job names it.
        done: Images.
        failed: Images, by reason.
        images: Of each image its stages and their seconds.
    """
    label = network_label(network)
    if done:
        _IMAGES.labels(label, "done", "").inc(done)
    for reason, count in failed.items():
        _IMAGES.labels(label, "failed", reason if reason in REASONS else OTHER).inc(count)
    for name, seconds in timings.items():
        if name == IDLE:
            _IDLE.inc(seconds)
        elif name.endswith(WAIT):
            _WAITED.labels(name.removesuffix(WAIT)).inc(seconds)
        else:
            _WORK.labels(name).inc(seconds)
    each: dict[str, list[float]] = defaultdict(list)
    for stages in images:
        for stage, seconds in stages.items():
            each[stage].append(seconds)
    for stage, values in each.items():
        _STAGE.labels(stage).add(values)


@lru_cache(maxsize=1)
def _labelled() -> set[str]:
    return set()


def network_label(network: str) -> str:
    """The label of a network: names that everybody knows stay, without timm's tag; users make up the others."""
    name, labelled = network, _labelled()
    if network != HF:
        if network not in known().names:
            return OWN
        name = network.partition(".")[0] if network.startswith(TIMM) else network
    if name not in labelled:
        if len(labelled) >= _MOST_NETWORKS:
            return OTHER
        labelled.add(name)
    return name


def batch(images: int) -> None:
    """Count a batch."""
    _BATCH.observe(images)


def halved() -> None:
    """Count a batch that did not fit."""
    _HALVED.inc()


def model_reused() -> None:
    """Count a model that was in memory."""
    _REUSED.inc()


def model_loaded(seconds: float) -> None:
    """Count a model that was loaded."""
    _LOAD.observe(seconds)


def weights_file(*, fetched: bool) -> None:
    """Count a weights file that was fetched, or was on disk."""
    _WEIGHTS.labels("fetched" if fetched else "disk").inc()


def store_failed(fault: str) -> None:
    """Count a request to the object store that failed; its fault is one that `open_s3` names."""
    _STORE.labels(fault).inc()


def worker_fault() -> None:
    """Count a pause of a worker that cannot work."""
    _FAULTS.inc()


def serve(folder: Path, address: str, port: int, others: Iterable[Collector] = ()) -> None:
    """Serve the sums over HTTP, from a thread of its own.

    Args:
        folder: Where the processes write.
        address: Of the network interface.
        port: TCP.
        others: What is served beside them.

    Raises:
        UsageError: The address or the port cannot be used.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    for collector in others:
        registry.register(collector)
    try:
        start_http_server(port, served_at(address), registry)
    except (OSError, UnicodeError) as error:
        raise not_served(address, port, error) from None
