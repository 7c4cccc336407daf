"""Where a job stands: what the counters and times of its hash mean to the one who asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import Field

from producer.jobs.model.frozen import Frozen
from producer.jobs.model.stage_times import StageTime, device_busy, stage_times
from producer.jobs.model.states import MAINTENANCE, TERMINAL, Ingest, JobState, WaitReason, known_state

#: Fields of the job's hash that its status is made of.
FIELDS = (
    "name",
    "state",
    "ingest",
    "network",
    "total",
    "done",
    "failed",
    "correct",
    "wrong",
    "unknown_labels",
    "label_problem",
    "created_at",
    "started_at",
    "finished_at",
    "error",
    "last_mark_at",
    "last_mark_n",
    "progress_at",
    "generation",
    "republished",
    "base_n",
    "chunk_size",
    "open_chunks",
    "broken_off",
    "maintained_until",
    "weights_sha256",
)

#: A hold that ends later is nobody's, as `_maintenance.lua` has it.
_LONGEST_HOLD_S = 86_400.0
_BROKEN_OFF = "its deletion was broken off, some of its objects are gone: `gradcam delete {job} --objects` goes on"


class ChunkCounts(Frozen):
    """Where a job's chunks are."""

    total: int
    waiting: int
    in_flight: int
    complete: int


class Wait(Frozen):
    """A server, or a step of work, that workers have waited for longer than usual."""

    what: str
    #: How many worker processes.
    workers: int
    longest_s: float


class JobStatus(Frozen):
    """The state of a job at one moment; all counts are of images."""

    job: str
    #: What the user named it; none for a job with a made-up id.
    name: str | None
    state: JobState
    ingest: Ingest
    network: str
    total: int
    done: int
    failed: int
    cancelled: int
    pending: int
    #: Of the done ones with a label, how many were predicted as it says, and how many were not; none without labels.
    correct: int | None = None
    wrong: int | None = None
    #: How many have a label that is no class of the network; none without labels, and of workers up to 0.4.0.
    unknown_labels: int | None = None
    #: What is wrong with one of these labels, in a sentence.
    label_problem: str | None = None
    #: reason → count
    failures: dict[str, int]
    #: Over the last minute or so while it runs, over the whole run when it has ended; none before the first image, and
    #: where nothing has been recorded for half a minute.
    images_per_s: float | None
    eta_s: float | None
    created_at: datetime
    finished_at: datetime | None
    #: Why the whole job failed, in a sentence.
    error: str | None = None
    #: Workers heard of within the last minute.
    workers: int = 0
    #: What keeps one of them from working, or what is wrong with Redis, in a sentence.
    problem: str | None = None
    #: What is wrong with Redis.
    redis_problem: str | None = None
    #: For how many seconds nothing has been recorded, though it runs and is not done; none before half a minute.
    stalled_s: float | None = None
    #: What workers wait for while that is so, the longest wait first.
    waited_for: tuple[Wait, ...] = ()
    #: Why it does not go on now, in a line; none where it does, or has ended.
    waits: str | None = None
    #: The same as a word.
    waits_reason: WaitReason | None = None
    #: Releases of workers that are not this program's, each with the name of one of its workers.
    other_versions: dict[str, str] = Field(default_factory=dict)
    #: It has ended with images done, and its summary is not in the store any more.
    objects_gone: bool = False
    #: Images in chunks that a worker holds.
    running: int = 0
    #: Where its chunks are; a worker process holds one or two.
    chunks: ChunkCounts
    #: Seconds of each stage over all images: at work, and waiting for it.
    stages: dict[str, StageTime] = Field(default_factory=dict)
    #: Share of the time in which the devices that work at it had something to do.
    device_busy: float | None = None
    #: 1 at first, one more with each retry.
    generation: int = 1
    #: SHA-256 of the weights that it is explained by; none before a worker has loaded them, `random` where they are.
    weights_sha256: str | None = None
    #: Chunks handed out again because a lease ran out or a message was lost.
    republished: int = 0

    @property
    def is_half_deleted(self) -> bool:
        """Whether its deletion was broken off: nothing but another deletion goes on with it."""
        return self.state is JobState.DELETING and self.problem == _BROKEN_OFF.format(job=self.job)

    @property
    def ended(self) -> bool:
        """Whether it has reached its end."""
        return self.state in TERMINAL


_COUNT, _YEAR_10000_S = re.compile(r"0|[1-9][0-9]{0,17}"), 253402300800
#: What was measured is no measure any more when nothing has been recorded for so long.
STALLED_AFTER_S = 30.0


def to_time(seconds: str | bytes) -> datetime:
    """Read a time as the scripts write it: seconds since 1970."""
    return datetime.fromtimestamp(float(seconds), UTC)


def is_count(word: str) -> bool:
    """Whether it is a count as Redis and the scripts write it, and in range."""
    return _COUNT.fullmatch(word) is not None


def count_of(word: str) -> int:
    """Read a count. Raises ValueError: it is none, see `is_count`."""
    if not is_count(word):
        raise ValueError("not a count")
    return int(word)


def unreadable_status(job: str, problem: str, created_s: float) -> JobStatus:
    """What a list has of a job that cannot be read: nothing is known of its counts.

    Args:
        job: Its id.
        problem: Why, in a sentence.
        created_s: When it was made, as the list of jobs has it, in seconds since 1970.
    """
    known = created_s if 0 <= created_s < _YEAR_10000_S else 0
    nothing = dict.fromkeys(("total", "done", "failed", "cancelled", "pending"), 0)
    return JobStatus(
        job=job,
        name=None,
        state=JobState.UNREADABLE,
        ingest=Ingest.CLOSED,
        network="",
        **nothing,
        failures={},
        images_per_s=None,
        eta_s=None,
        created_at=datetime.fromtimestamp(known, UTC),
        finished_at=None,
        problem=problem,
        chunks=ChunkCounts(total=0, waiting=0, in_flight=0, complete=0),
    )


def make_status(
    job: str,
    fields: dict[str, str],
    failures: dict[str, int],
    chunks: ChunkCounts,
    timings: Mapping[str, float],
    workers: int,
    problem: str | None,
    now: float,
) -> JobStatus:
    """Make a job's status of what its hash holds.

    Args:
        job: Its id.
        fields: Those of `FIELDS` that are set.
        failures: reason → count.
        chunks: Where its chunks are.
        timings: As `stages.py` says, in seconds.
        workers: Workers heard of lately.
        problem: What keeps one of them from working.
        now: By Redis' clock, in seconds since 1970.

    Raises:
        ValueError, KeyError, OverflowError, OSError: Something of it is not as the scripts write it.
    """
    state = known_state(fields["state"])
    total, done, failed = (count_of(fields[name]) for name in ("total", "done", "failed"))
    left = total - done - failed
    if left < 0:
        raise ValueError("more images have their end than there are")
    ended = state in TERMINAL
    over = ended or state in MAINTENANCE
    if "open_chunks" in fields:
        chunks = chunks.model_copy(update={"complete": chunks.total - count_of(fields["open_chunks"]), "waiting": 0})
    still_s = 0.0 if ended else still_for_s(fields, now)
    fresh = still_s < STALLED_AFTER_S
    speed = images_per_s(fields, done + failed) if fresh else None
    return JobStatus(
        job=job,
        name=fields.get("name") or None,
        state=state,
        ingest=Ingest(fields["ingest"]),
        network=fields.get("network", ""),
        total=total,
        done=done,
        failed=failed,
        cancelled=left if over else 0,
        pending=0 if over else left,
        **_of_labels(fields),
        failures=failures,
        running=0 if over else min(left, chunks.in_flight * count_of(fields["chunk_size"])),
        chunks=chunks,
        stages=stage_times(timings),
        device_busy=device_busy(timings) if fresh else None,
        images_per_s=round(speed, 3) if speed else None,
        eta_s=round(left / speed, 1) if speed and state is JobState.RUNNING else None,
        created_at=to_time(fields["created_at"]),
        finished_at=to_time(fields["finished_at"]) if "finished_at" in fields else None,
        error=fields.get("error"),
        workers=workers,
        problem=None if ended else _BROKEN_OFF.format(job=job) if _is_broken_off(state, fields, now) else problem,
        stalled_s=round(still_s, 1) if not fresh and left and state is JobState.RUNNING else None,
        generation=count_of(fields["generation"]),
        weights_sha256=fields.get("weights_sha256"),
        republished=count_of(fields.get("republished", "0")),
    )


def _is_broken_off(state: JobState, fields: Mapping[str, str], now: float) -> bool:
    """Whether nobody deletes a job any more; a worker writes that down, where there is one."""
    held_s = float(fields.get("maintained_until", 0)) - now
    return state is JobState.DELETING and ("broken_off" in fields or not 0 < held_s <= _LONGEST_HOLD_S)


def still_for_s(fields: Mapping[str, str], now: float) -> float:
    """Seconds since something was recorded last, or first handed out, or the job was made."""
    times = (fields[name] for name in ("progress_at", "started_at", "created_at") if name in fields)
    return max(now - float(next(times)), 0.0)


def _of_labels(fields: Mapping[str, str]) -> dict[str, int | str | None]:
    counts = {name: max(int(fields[name]), 0) for name in ("correct", "wrong", "unknown_labels") if name in fields}
    return {**counts, "label_problem": fields.get("label_problem") if counts.get("unknown_labels") else None}


def images_per_s(fields: Mapping[str, str], finished: int) -> float | None:
    """The speed over the last minute or so, or over the whole run of an ended job; None before its first image."""
    if "progress_at" not in fields or "started_at" not in fields:
        return None
    until = float(fields["progress_at"])
    since, before = float(fields["started_at"]), count_of(fields.get("base_n", "0"))
    if "finished_at" not in fields and "last_mark_at" in fields:
        since, before = float(fields["last_mark_at"]), count_of(fields["last_mark_n"])
    # An old holder's work may be recorded before anything of a new generation was handed out.
    return max(finished - before, 0) / max(until - since, 1e-3)
