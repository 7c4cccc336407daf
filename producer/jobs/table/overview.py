"""One look at all jobs and workers, for metrics: its cost grows with jobs up to a limit, and never with images."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

import redis

from producer.jobs.model import keys
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.states import Ingest, JobState
from producer.jobs.model.status import STALLED_AFTER_S, Wait, images_per_s
from producer.jobs.model.why import MOVES_S
from producer.jobs.table.redis_scripts import Scripts, job_names, text
from producer.jobs.table.workers import WORKER_SILENT_S, longest_waits, told_lately

if TYPE_CHECKING:
    from producer.jobs.table.redis_server import Memory, Server

#: A call of Redis looks at so many jobs: it keeps the server busy for some milliseconds at most.
_JOBS_AT_ONCE: Final = 50
#: A look looks at so many jobs that were looked at before, those first for which it is longest ago.
_JOBS_AGAIN: Final = 100
#: As many workers, or chunks in flight, of a job that does not go on.
_MOST_WORKERS: Final = 1000
#: So many jobs of a priority are told of that were passed over, those that are paused among them.
_MOST_PASSED_OVER: Final = 10_000
_MOST: Final = 2**53
#: The queues of messages.
QUEUES: Final = ("recovery", *PRIORITIES)
_FIELDS: Final = (
    *("n_open", "progress_at"),  # as `job_facts.lua` wants them
    *("state", "queue", "network", "chunk_size", "total", "done", "failed"),
    *("created_at", "reopened_at", "started_at", "last_mark_at", "last_mark_n", "base_n"),
    *("ingest", "ingest_at", "ready_at", "not_before"),
)
#: Hashes that all jobs share, which may be of another type.
_HASHES: Final = ("queues", "problems", "waits", "releases", "speeds", "device speeds", "counts")
_STATE: Final = _FIELDS.index("state")
_PARTS: Final = ("waiting", "leases", "marks", "troubles")
#: What a worker's name has behind that of its device: its number there, and a word of its own for each start.
_BEHIND_DEVICE: Final = re.compile(r"(-(?:cpu|gpu\d+(?:-mig\d+)?))(?:-\d+)?(?:-[0-9a-f]{4})?$")


@dataclass(frozen=True)
class JobFacts:
    """What metrics need of a job that has not ended."""

    job: str
    #: When it was looked at, by Redis' clock, in seconds since 1970: of many jobs not each is with every look.
    seen_at: float
    state: JobState
    priority: str
    network: str
    #: Images that are neither done nor failed, those in flight included.
    left: int
    #: Of these, images of chunks that a worker holds; 0 where nobody does.
    in_flight: int
    #: Chunks.
    waiting: int
    leased: int
    #: Leases that ran out and that no reconciler has seen yet.
    overdue: int
    #: When the chunk was published that has waited longest, in seconds since 1970.
    waiting_since: float | None
    #: When something was recorded last, or it began, or was made.
    went_on_at: float
    #: When something was recorded last, or it began; None before that.
    moved_at: float | None
    #: Since when it has had a chunk that could be taken, after it had none or was paused; None of workers up to 0.4.0.
    ready_at: float | None
    #: When images of it were sent last, where more may come; else None.
    sent_at: float | None
    #: Whether an image of it has its end.
    begun: bool
    #: Until others go first; 0 where they do not.
    not_before: float
    #: Whether each of its chunks in flight has its model loading; known where nothing was recorded lately.
    loading: bool
    #: Workers that have refused it, or cannot read it; known where nobody holds a chunk of it.
    refused_by: frozenset[str]
    #: Over the last minute or so; None where nothing was recorded lately.
    images_per_s: float | None


@dataclass(frozen=True)
class WorkerFacts:
    """A worker process that was heard of within a day."""

    name: str
    #: The device that it shares with others of the same one.
    device: str
    #: `ready`, `waiting` (for a server or a step that takes long), `faulty`, or `silent` (not heard of for a minute).
    state: str
    #: The priorities that it reads, in that order.
    priorities: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """All jobs that have not ended, and all workers, at one moment."""

    #: By Redis' clock, in seconds since 1970.
    at: float
    jobs: Sequence[JobFacts]
    #: job → when a worker took a chunk of another one of its priority, though this one stood before that in the row
    passed_over: Mapping[str, float]
    #: Jobs of which Redis holds what nobody can read.
    unreadable: int
    #: Jobs in the job table, those that have ended among them.
    kept: int
    workers: Sequence[WorkerFacts]
    #: What they wait for, the longest wait first.
    waits: Sequence[Wait]
    #: Different releases of workers that are alive.
    releases: int
    #: queue → messages
    messages: Mapping[str, int]
    #: priority → messages that are missing and will be sent again
    missing: Mapping[str, int]
    #: network → images/s of one process, as it was measured last
    speeds: Mapping[str, float]
    #: The same of one device; workers up to 0.4.0 do not tell it.
    device_speeds: Mapping[str, float]
    #: what → how often, since Redis was empty: `_counts.lua`
    counts: Mapping[str, int]
    memory: Memory


def device_of(worker: str) -> str:
    """The device of a worker process, by its name, which the launcher makes of host, device, number and a word."""
    return _BEHIND_DEVICE.sub(r"\1", worker)


class OverviewReader:
    """Looks at all jobs and workers; safe to share between threads.

    Of many jobs some are looked at anew each time. What is told of the others is what was seen of them before.

    Args:
        scripts: How Redis is called.
        server: Says how much memory Redis has.
    """

    def __init__(self, scripts: Scripts, server: Server) -> None:
        self._scripts, self._server = scripts, server
        self._lock = threading.Lock()
        #: What was seen of each job that has not ended, None where nobody can read it; what was seen last stands last.
        self._seen: dict[str, JobFacts | None] = {}

    def read(self) -> Overview:
        """Look once. Raises ServiceError and Unfit, as `Scripts.do`."""
        with self._lock:
            return self._read()

    def _read(self) -> Overview:
        found = self._scripts.do(_ask)
        seconds, micros = found["time"] or (0, 0)
        now = float(seconds) + float(micros) / 1e6
        self._look_at(set(job_names(found["active"] or ())), now)
        jobs = list(self._seen.values())
        known = [job for job in jobs if job is not None]
        return Overview(
            at=now,
            jobs=known,
            passed_over=self._passed_over(),
            unreadable=len(jobs) - len(known),
            kept=found["jobs"] or 0,
            workers=list(_workers(found, now)),
            waits=longest_waits(found["waits"].values(), now),
            releases=sum(
                now - _number(told.partition(b" ")[0]) < WORKER_SILENT_S for told in found["releases"].values()
            ),
            messages={queue: found[queue] or 0 for queue in QUEUES},
            missing={priority: int(_number(found[f"missing {priority}"])) for priority in PRIORITIES},
            speeds=_speeds(found["speeds"]),
            device_speeds=_speeds(found["device speeds"]),
            counts={_shown(name): int(_number(count)) for name, count in found["counts"].items()},
            memory=self._server.memory(),
        )

    def _passed_over(self) -> dict[str, float]:
        names = [name for one in PRIORITIES for name in (keys.picked(one), keys.round_robin(one))]
        found = self._scripts.run("passed_over", names, [_MOST_PASSED_OVER])
        return {_shown(job): _number(answer[0]) for answer in found if answer for job in answer[1]}

    def _look_at(self, active: set[str], now: float) -> None:
        for job in self._seen.keys() - active:
            del self._seen[job]
        names = [*sorted(active - self._seen.keys()), *islice(self._seen, _JOBS_AGAIN)]
        for start in range(0, len(names), _JOBS_AT_ONCE):
            page = names[start : start + _JOBS_AT_ONCE]
            parts = [name for job in page for name in JobKeys(job).parts(*_PARTS)]
            found = self._scripts.run("job_facts", parts, [MOVES_S, _MOST_WORKERS, *_FIELDS])
            for job, answer in zip(page, found, strict=True):
                self._seen.pop(job, None)
                if not answer or answer[0][_STATE] is not None:  # else it is gone, and the reconciler drops it
                    self._seen[job] = _read_facts(job, answer, now)


def _ask(client: redis.Redis) -> dict[str, Any]:
    with client.pipeline(transaction=False) as pipe:
        asked: dict[str, Any] = {
            "time": pipe.time(),
            "active": pipe.smembers(keys.ACTIVE),
            "jobs": pipe.zcard(keys.JOBS),
            "workers": pipe.zrange(keys.WORKERS, 0, -1, withscores=True),
            "queues": pipe.hgetall(keys.QUEUES),
            "problems": pipe.hgetall(keys.PROBLEMS),
            "waits": pipe.hgetall(keys.WAITS),
            "releases": pipe.hgetall(keys.RELEASES),
            "speeds": pipe.hgetall(keys.SPEEDS),
            "device speeds": pipe.hgetall(keys.DEVICE_SPEEDS),
            "counts": pipe.hgetall(keys.COUNTS),
            **{queue: pipe.llen(keys.QUEUE_PREFIX + queue) for queue in QUEUES},
            **{f"missing {one}": pipe.hget(keys.missing_messages(one), "least") for one in PRIORITIES},
        }
        answers = pipe.execute(raise_on_error=False)
    for answer in answers:
        # What is of another kind than ours is nobody's; the rest is told.
        if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
            raise answer
    found = {
        name: None if isinstance(answer, Exception) else answer for name, answer in zip(asked, answers, strict=True)
    }
    return found | {name: found[name] or {} for name in _HASHES}


def _workers(found: Mapping[str, Any], now: float) -> Iterator[WorkerFacts]:
    for name, heard_at in cast("list[tuple[bytes, float]]", found["workers"] or []):
        if now - heard_at >= WORKER_SILENT_S:
            state = "silent"
        elif name in found["problems"]:
            state = "faulty"
        else:
            state = "waiting" if told_lately(found["waits"].get(name, b""), now) else "ready"
        reads = _shown(found["queues"].get(name, b"")).split(",")
        yield WorkerFacts(
            name=_shown(name),
            device=device_of(_shown(name)),
            state=state,
            priorities=tuple(priority for priority in reads if priority in PRIORITIES) or PRIORITIES,
        )


def _read_facts(job: str, answer: Sequence[Any], now: float) -> JobFacts | None:
    """Read what `job_facts.lua` gives; None where another version wrote it, or somebody else."""
    try:
        return _facts(job, answer, now)
    except (ValueError, KeyError, ArithmeticError):
        return None


def _facts(job: str, answer: Sequence[Any], now: float) -> JobFacts:
    values, waiting, leased, overdue, since, loading, refused_by = answer
    fields = {name: text(value) for name, value in zip(_FIELDS, values, strict=True) if value is not None}
    ended = _count(fields["done"]) + _count(fields["failed"])
    left = max(_count(fields["total"]) - ended, 0)
    began_at = max(_time(fields["created_at"]), _time(fields.get("reopened_at", "0")))
    moved_at = max((_time(fields[name]) for name in ("started_at", "progress_at") if name in fields), default=None)
    went_on_at = max(began_at, moved_at or 0.0)
    return JobFacts(
        job=job,
        seen_at=now,
        state=JobState(fields["state"]),
        priority=fields["queue"],
        network=fields["network"],
        left=left,
        in_flight=min(left, leased * _count(fields["chunk_size"])),
        waiting=waiting,
        leased=leased,
        overdue=overdue,
        waiting_since=_time(since) if since else None,
        went_on_at=went_on_at,
        moved_at=moved_at,
        ready_at=_time(fields["ready_at"]) if "ready_at" in fields else None,
        begun=ended > 0,
        not_before=_time(fields.get("not_before", "0")),
        loading=loading == b"1",
        refused_by=frozenset(map(_shown, refused_by)),
        sent_at=_time(fields["ingest_at"]) if fields["ingest"] == Ingest.OPEN else None,
        images_per_s=images_per_s(fields, ended) if now - went_on_at < STALLED_AFTER_S else None,
    )


def _speeds(found: Mapping[bytes, bytes]) -> dict[str, float]:
    """Those that are speeds: what somebody else wrote is none."""
    return {_shown(name): speed for name, told in found.items() if (speed := _number(told)) > 0}


def _number(value: bytes | None) -> float:
    try:
        number = float(value or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _time(word: str) -> float:
    """Read a time. Raises ValueError for one that no clock shows."""
    if not math.isfinite(seconds := float(word)):
        raise ValueError(word)
    return seconds


def _count(word: str) -> int:
    """Read a count. Raises ValueError for one that nobody can have counted."""
    if not 0 <= (count := int(word)) < _MOST:
        raise ValueError(word)
    return count


def _shown(value: bytes) -> str:
    return value.decode(errors="replace")
