"""How much work is left, in seconds of a GPU, and how many GPUs do it in time.

A queue's length says too little: it is 0 while the last chunks are worked at, and a chunk of one network takes a
hundred times as long as one of another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from producer.jobs.model.limits import FULL_SHARE
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from producer.jobs.table.overview import JobFacts, Overview

#: A GPU's images/s with a network that nobody has measured lately.
IMAGES_PER_S: Final = 20.0
#: How long all of it may take.
HOURS: Final = 4.0
#: States of workers that can work.
FIT: Final = frozenset({"ready", "waiting"})
#: What is wanted at least where anything is left: scalers count in thousandths.
_LEAST: Final = 0.01


@dataclass(frozen=True)
class Forecast:
    """What is left of the jobs that run."""

    #: Images that are neither done nor failed, those in flight included.
    open_images: int
    #: Of these, images of chunks that a worker holds.
    in_flight_images: int
    #: Jobs of which only the summary is missing: a worker writes it.
    finalizing_jobs: int
    #: Images whose network was measured.
    measured_images: int
    #: How long one GPU takes for all of it.
    gpu_seconds: float

    def gpus_wanted(self, hours: float) -> float:
        """How many GPUs do it in so many hours; 0 where nothing is left.

        Args:
            hours: More than 0.
        """
        if not self.open_images and not self.finalizing_jobs:
            return 0.0
        return max(self.gpu_seconds / (hours * 3600), _LEAST)


def speeds_of_a_gpu(overview: Overview) -> dict[str, float]:
    """How many images a second a GPU explains, by network, as measured last: also where no worker is alive now."""
    alive = [worker for worker in overview.workers if worker.state != "silent"]
    # For networks that only workers up to 0.4.0 measured.
    processes = len(alive) / len({worker.device for worker in alive}) if alive else 1.0
    return {network: speed * processes for network, speed in overview.speeds.items()} | dict(overview.device_speeds)


def forecast(overview: Overview, images_per_s: float, priorities: Collection[str] = PRIORITIES) -> Forecast:
    """Forecast what is left.

    Args:
        overview: Where jobs and workers stand.
        images_per_s: A GPU's speed with networks that were not measured; more than 0.
        priorities: Jobs of these only.
    """
    speeds = speeds_of_a_gpu(overview)
    jobs = [job for job in overview.jobs if job.priority in priorities]
    running = [job for job in jobs if job.state is JobState.RUNNING]
    return Forecast(
        open_images=sum(job.left for job in running),
        in_flight_images=sum(job.in_flight for job in running),
        finalizing_jobs=sum(job.state is JobState.FINALIZING for job in jobs),
        measured_images=sum(job.left for job in running if job.network in speeds),
        gpu_seconds=math.fsum(job.left / speeds.get(job.network, images_per_s) for job in running),
    )


def longest_stalls(overview: Overview) -> Mapping[str, float]:
    """The longest time, in seconds, for which a job of a priority has not gone on though it could: priority → seconds.

    A job that a worker holds goes on when something of it is recorded. One that nobody holds waits its turn for as long
    as others before it go on: those of its priority, and those that every worker which reads its priority reads first.
    It does not where a worker has passed it over: workers take of one priority a chunk of each job in turns. One that
    needs only its summary waits for nobody, and one that needs only more images, for who sends them.
    """
    turns = {str(priority): _others_went_on_at(overview, priority) for priority in PRIORITIES}
    stalls = dict.fromkeys(turns, 0.0)
    for job in overview.jobs:
        if job.priority in stalls:
            stalls[job.priority] = max(stalls[job.priority], _stall(job, overview, turns[job.priority]))
    return stalls


def _others_went_on_at(overview: Overview, priority: str) -> float:
    """When a job went on last that may be before one of this priority; 0 where none is, as nobody takes any."""
    readers = [one.priorities for one in overview.workers if one.state in FIT and priority in one.priorities]
    if not readers:
        return 0.0
    before = set.intersection(*(set(reads[: reads.index(priority)]) for reads in readers))
    return max((job.moved_at or 0.0 for job in overview.jobs if job.priority in {priority, *before}), default=0.0)


def _stall(job: JobFacts, overview: Overview, others_went_on_at: float) -> float:
    """For how many seconds a job had not gone on though it could, when it was looked at: it may have gone on since."""
    if job.state is JobState.FINALIZING:
        return job.seen_at - job.went_on_at
    if job.state is not JobState.RUNNING:
        return 0.0
    if not job.left:
        # A sender waits where Redis is full, which is told by itself.
        silent = job.sent_at is not None and overview.memory.fullness <= FULL_SHARE
        return job.seen_at - max(job.went_on_at, job.sent_at or 0.0) if silent else 0.0
    since = max(job.went_on_at, job.ready_at or 0.0)
    if job.leased:
        return job.seen_at - since
    # What is known of it is of when it was looked at: whether a chunk of it has waited since, nobody knows.
    passed_over_s = min(overview.passed_over.get(job.job, 0.0), job.seen_at) - since
    return max(job.seen_at - max(since, others_went_on_at), passed_over_s)
