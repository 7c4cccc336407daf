"""The metrics of a whole deployment: jobs, workers, messages and Redis. Those of a machine's work are its workers' own.

Each is declared here once, and `docs/metrics.md` is made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from producer.jobs.model.errors import GradcamError
from producer.jobs.model.metric import Metric
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.states import MAINTENANCE, TERMINAL, JobState
from producer.jobs.table.overview import QUEUES
from producer.monitoring.forecast import FIT, forecast, longest_stalls
from producer.monitoring.reasons import reasons

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.metrics_core import Metric as Family

    from producer.jobs.table.overview import JobFacts, Overview

_UNKNOWN: Final = "unknown"
_WORKER_STATES: Final = ("ready", "waiting", "faulty", "silent")
#: States in which a job is among those that are looked at; the others are ends.
_OPEN_STATES: Final = (JobState.RUNNING, JobState.PAUSED, JobState.FINALIZING, *sorted(MAINTENANCE))

REDIS_UP: Final = Metric("gradcam_redis_up", "gauge", "1 where Redis answered the exporter, 0 where it did not.")
LOOK_S: Final = Metric("gradcam_exporter_look_seconds", "gauge", "How long the exporter's last look at Redis took.")
JOBS: Final = Metric("gradcam_jobs", "gauge", "Jobs that have not ended.", ("state", "priority"))
WAITS: Final = Metric(
    "gradcam_waiting_jobs", "gauge", "Jobs that do not go on, by why, as `gradcam status JOB` says it.", ("reason",)
)
JOBS_KEPT: Final = Metric("gradcam_jobs_kept", "gauge", "Jobs in Redis, those that have ended among them.")
JOBS_ENDED: Final = Metric("gradcam_jobs_ended", "counter", "Ends of jobs; a retry ends again.", ("state",))
OPEN: Final = Metric(
    "gradcam_open_images",
    "gauge",
    "Images that are neither done nor failed, those in flight included.",
    ("state", "priority"),
)
IN_FLIGHT: Final = Metric(
    "gradcam_images_in_flight", "gauge", "Of these, images of chunks that a worker holds.", ("priority",)
)
SPEED: Final = Metric(
    "gradcam_images_per_second", "gauge", "Images recorded a second, over a minute or so.", ("priority",)
)
WAITING: Final = Metric(
    "gradcam_chunks_waiting", "gauge", "Chunks of running jobs that nobody works at.", ("priority",)
)
OLDEST: Final = Metric(
    "gradcam_oldest_waiting_seconds", "gauge", "How long the chunk has waited that has waited longest.", ("priority",)
)
LEASED: Final = Metric("gradcam_chunks_leased", "gauge", "Chunks that a worker holds.", ("priority",))
OVERDUE: Final = Metric(
    "gradcam_chunks_overdue",
    "gauge",
    "Chunks whose lease ran out and that no reconciler has handed out again.",
    ("priority",),
)
STALL: Final = Metric(
    "gradcam_longest_stall_seconds",
    "gauge",
    "The longest time for which a job has not gone on though it could: it is not paused, and no other is before it.",
    ("priority",),
)
GPU_SECONDS: Final = Metric(
    "gradcam_forecast_gpu_seconds", "gauge", "How long one GPU takes for what is left of running jobs.", ("priority",)
)
WORKERS: Final = Metric("gradcam_workers", "gauge", "Worker processes heard of within a day.", ("state",))
READING: Final = Metric(
    "gradcam_workers_reading",
    "gauge",
    "Worker processes that are alive, not faulty, and read a priority.",
    ("priority",),
)
DEVICES: Final = Metric("gradcam_devices", "gauge", "Devices of worker processes that are alive.")
RELEASES: Final = Metric("gradcam_worker_releases", "gauge", "Different releases of workers that are alive.")
MESSAGES: Final = Metric("gradcam_messages", "gauge", "Messages in Celery's queues.", ("queue",))
MISSING: Final = Metric(
    "gradcam_messages_missing",
    "gauge",
    "Messages that are fewer than waiting chunks, for as long as that lasts.",
    ("priority",),
)
RESENT: Final = Metric("gradcam_messages_resent", "counter", "Lost messages that the reconciler sent again.")
EXPIRED: Final = Metric("gradcam_leases_expired", "counter", "Leases that ran out; their chunks were handed out again.")
RECLAIMED: Final = Metric(
    "gradcam_chunks_reclaimed", "counter", "Chunks taken back from a process whose parent saw it die."
)
MEMORY: Final = Metric("gradcam_redis_memory_bytes", "gauge", "Memory that Redis uses, where it may be asked.")
MEMORY_LIMIT: Final = Metric("gradcam_redis_memory_limit_bytes", "gauge", "Its `maxmemory`; 0 where it has none.")

#: All of them, in the order of the documentation.
METRICS: Final = (
    *(REDIS_UP, LOOK_S, JOBS, WAITS, JOBS_KEPT, JOBS_ENDED, OPEN, IN_FLIGHT, SPEED, WAITING, OLDEST, LEASED),
    *(OVERDUE, STALL, GPU_SECONDS, WORKERS, READING, DEVICES, RELEASES, MESSAGES, MISSING, RESENT, EXPIRED, RECLAIMED),
    *(MEMORY, MEMORY_LIMIT),
)

#: label values → value
Values = Mapping[tuple[str, ...], float]


class DeploymentCollector(Collector):
    """Makes families of an overview, each time that Prometheus asks.

    Args:
        look: Gives the overview, and how long it took, in seconds. Raises GradcamError where there is none.
        images_per_s: A GPU's speed with networks that were not measured.
    """

    def __init__(self, look: Callable[[], tuple[Overview, float]], images_per_s: float) -> None:
        self._look, self._images_per_s = look, images_per_s

    def describe(self) -> Iterable[Family]:
        """Nothing: a registry would look at Redis to find out."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Everything; where Redis does not answer, that alone."""
        try:
            overview, took_s = self._look()
        except GradcamError:
            yield _family(REDIS_UP, {(): 0.0})
            return
        yield _family(REDIS_UP, {(): 1.0})
        yield _family(LOOK_S, {(): took_s})
        for metric, values in measure(overview, self._images_per_s):
            yield _family(metric, values)


def measure(overview: Overview, images_per_s: float) -> Iterator[tuple[Metric, Values]]:
    """What an overview says: each metric with the values of its labels."""
    running = [job for job in overview.jobs if job.state is JobState.RUNNING]
    known: dict[tuple[str, ...], float] = {(state, priority): 0.0 for state in _OPEN_STATES for priority in PRIORITIES}
    yield JOBS, {**known, **_by_state(overview.jobs, lambda _: 1.0), (_UNKNOWN, _UNKNOWN): float(overview.unreadable)}
    yield WAITS, {(reason,): float(count) for reason, count in reasons(overview).items()}
    yield JOBS_KEPT, {(): float(overview.kept)}
    yield JOBS_ENDED, {(state,): float(overview.counts.get(f"ended:{state}", 0)) for state in sorted(TERMINAL)}
    begun = [job for job in overview.jobs if job.state in {JobState.RUNNING, JobState.PAUSED}]
    states: dict[tuple[str, ...], float]
    states = {(state, priority): 0.0 for state in (JobState.RUNNING, JobState.PAUSED) for priority in PRIORITIES}
    yield OPEN, {**states, **_by_state(begun, lambda job: job.left)}
    yield IN_FLIGHT, _by_priority(running, lambda job: job.in_flight)
    yield SPEED, _by_priority(running, lambda job: job.images_per_s or 0.0)
    yield WAITING, _by_priority(running, lambda job: job.waiting)
    ages = [(job.priority, job.seen_at - job.waiting_since) for job in running if job.waiting_since is not None]
    yield OLDEST, {(one,): max((age for its, age in ages if its == one), default=0.0) for one in PRIORITIES}
    yield LEASED, _by_priority(overview.jobs, lambda job: job.leased)
    yield OVERDUE, _by_priority(overview.jobs, lambda job: job.overdue)
    yield STALL, {(priority,): stall for priority, stall in longest_stalls(overview).items()}
    yield GPU_SECONDS, {(one,): forecast(overview, images_per_s, [one]).gpu_seconds for one in PRIORITIES}
    yield from _workers(overview)
    yield MESSAGES, {(queue,): float(overview.messages[queue]) for queue in QUEUES}
    yield MISSING, {(priority,): float(overview.missing[priority]) for priority in PRIORITIES}
    for metric, name in ((RESENT, "resent"), (EXPIRED, "expired"), (RECLAIMED, "reclaimed")):
        yield metric, {(): float(overview.counts.get(name, 0))}
    told = ((MEMORY, overview.memory.used_bytes), (MEMORY_LIMIT, overview.memory.limit_bytes))
    for metric, value in told:
        if value is not None:
            yield metric, {(): float(value)}


def _workers(overview: Overview) -> Iterator[tuple[Metric, Values]]:
    states = Counter(worker.state for worker in overview.workers)
    yield WORKERS, {(state,): float(states[state]) for state in _WORKER_STATES}
    fit = [worker for worker in overview.workers if worker.state in FIT]
    yield READING, {(one,): float(sum(one in worker.priorities for worker in fit)) for one in PRIORITIES}
    yield DEVICES, {(): float(len({worker.device for worker in overview.workers if worker.state != "silent"}))}
    yield RELEASES, {(): float(overview.releases)}


def _by_state(jobs: Iterable[JobFacts], value: Callable[[JobFacts], float]) -> Values:
    sums: Counter[tuple[str, ...]] = Counter()
    for job in jobs:
        sums[job.state, _priority(job)] += value(job)  # type: ignore[assignment]
    return sums


def _by_priority(jobs: Iterable[JobFacts], value: Callable[[JobFacts], float]) -> Values:
    sums: dict[tuple[str, ...], float] = {(priority,): 0.0 for priority in PRIORITIES}
    for job in jobs:
        key = (_priority(job),)
        sums[key] = sums.get(key, 0.0) + value(job)
    return sums


def _priority(job: JobFacts) -> str:
    return job.priority if job.priority in PRIORITIES else _UNKNOWN


def _family(metric: Metric, values: Values) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.words, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
