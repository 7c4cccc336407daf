"""Every read of the job table; nothing here changes it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import redis
from pydantic_core import from_json

from producer.jobs.model import keys, release
from producer.jobs.model.errors import OtherVersion, UnknownJob, UnreadableJob, no_such
from producer.jobs.model.history import Action
from producer.jobs.model.items import Item, decompress_items
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import MAX_CHUNK_SIZE, PRIORITIES, JobSpec
from producer.jobs.model.states import Ingest, ItemState, JobState, WaitReason, known_state
from producer.jobs.model.status import (
    FIELDS,
    ChunkCounts,
    JobStatus,
    Wait,
    count_of,
    is_count,
    make_status,
    still_for_s,
    unreadable_status,
)
from producer.jobs.model.why import Standing, Surroundings, is_asked, why, why_paused
from producer.jobs.table.redis_scripts import Scripts, job_names, text
from producer.jobs.table.redis_server import Server
from producer.jobs.table.troubles import problem_of
from producer.jobs.table.workers import WORKER_SILENT_S, WorkerRegistry

#: Facts that `annotate` may note: what the weights were and what was taken of their file, which layer was meant, what
#: the network read.
FACTS = ("weights_sha256", "weights_read", "layer", "preprocessing", "guided_relus", "worker_versions")
#: What the job table holds of a chunk for good: digest:count.
_ENTRY = re.compile(r"[0-9a-f]{16}:[1-9][0-9]{0,2}")
_JOBS_AT_ONCE = 100
#: As `_history.lua` has it.
MOST_ACTIONS = 50
#: Of the workers, and of the jobs of each priority, so many are looked at for why a job waits.
_MOST_WORKERS, _MOST_JOBS = 1000, 50
_STATES_AT_ONCE = 65_536
_FAILURES_AT_ONCE = 500
#: The name of a chunk, as `_names.lua` has it.
_CHUNK = re.compile(rb"0|[1-9][0-9]{0,9}")
#: byte → the states of its four items, the first in the highest bits.
_FOUR_STATES = [bytes(byte >> shift & 3 for shift in (6, 4, 2, 0)) for byte in range(256)]


@dataclass(frozen=True)
class Outline:
    """What can be read of a job, whichever version wrote it."""

    #: Its spec as it was written, unchecked.
    spec: dict[str, Any]
    #: Its priority.
    queue: str
    chunk_size: int
    #: A word that this version may not know.
    state: str


class Queries:
    """Every read of jobs.

    Args:
        scripts: How Redis is called.
        server: Says what is wrong with Redis, for a job's status.
        registry: Says which workers there are and what they wait for.
    """

    def __init__(self, scripts: Scripts, server: Server, registry: WorkerRegistry) -> None:
        self._scripts, self._server, self._registry = scripts, server, registry

    def facts(self, job: str) -> dict[str, str]:
        """What workers noted with `annotate`."""

        def facts(client: redis.Redis) -> dict[str, str]:
            values = cast("list[bytes | None]", client.hmget(JobKeys(job).hash, FACTS))
            return {name: text(value) for name, value in zip(FACTS, values, strict=True) if value is not None}

        return self._scripts.of_job(job, facts)

    def pinned_weights(self, job: str) -> str | None:
        """The SHA-256 of the weights that a job is explained by, once a worker has loaded them."""
        found = self._scripts.do(lambda client: cast("bytes | None", client.hget(JobKeys(job).hash, "weights_sha256")))
        return None if found is None else text(found)

    def histogram(self, job: str) -> dict[str, int]:
        """How many images were explained for each class: `class_key` → count."""

        def histogram(client: redis.Redis) -> dict[str, int]:
            found = cast("dict[bytes, bytes]", client.hgetall(JobKeys(job).part("classes")))
            return {text(name): count_of(text(count)) for name, count in found.items()}

        return self._scripts.of_job(job, histogram)

    def history(self, job: str) -> list[Action]:
        """What was done to a job, the latest last; what cannot be read of it is left out.

        Raises:
            UnknownJob: There is no such job.
        """
        if self.state(job) is None:
            raise UnknownJob(no_such(job))
        return self._actions(job, 0)

    def _actions(self, job: str, first: int) -> list[Action]:
        def actions(client: redis.Redis) -> list[Action]:
            found = []
            for line in cast("list[bytes]", client.lrange(JobKeys(job).part("history"), first, -1)):
                with suppress(ValueError):  # pydantic's among them
                    found.append(Action.model_validate_json(line, strict=False))
            return found[-MOST_ACTIONS:]

        return self._scripts.of_job(job, actions)

    def place_of_summary(self, job: str) -> str | None:
        """Where the summary of a job that has ended was written, as bucket/prefix; None where it was not."""
        outline = self.outline(job)
        written = self._field(job, "summary")
        return str(outline.spec.get("store", "")) if outline and written == b"1" else None

    def recovered(self, job: str) -> bool:
        """Whether `gradcam recover` made the job of what the store has of it."""
        return self._field(job, "recovered") is not None

    def is_open(self, job: str) -> bool:
        """Whether a job that has not ended may get more images: whoever sends them is at work, or broke off."""
        fields = self._scripts.of_job(job, lambda client: client.hmget(JobKeys(job).hash, ("state", "ingest")))
        return fields[0] in {b"running", b"paused"} and fields[1] == b"open"

    def since(self, job: str) -> int:
        """The first token that records of a job may have; parts with a lower one are an earlier job's of its name."""
        return self._scripts.of_job(job, lambda client: count_of(text(_field(client, job, "since") or b"0")))

    def state(self, job: str) -> str | None:
        """Where a job stands, in a word that this version may not know; None if there is no such job."""
        found = self._field(job, "state")
        return None if found is None else found.decode(errors="replace")

    def _field(self, job: str, name: str) -> bytes | None:
        return self._scripts.of_job(job, lambda client: _field(client, job, name))

    def spec(self, job: str) -> tuple[JobSpec, JobState] | None:
        """What a job computes and where it stands; None if there is no such job.

        Raises:
            OtherVersion: Another version of this program wrote it.
        """
        written, state = self._scripts.of_job(
            job, lambda client: cast("list[bytes | None]", client.hmget(JobKeys(job).hash, ("spec", "state")))
        )
        if written is None or state is None:
            return None
        try:
            return JobSpec.model_validate_json(written), known_state(text(state))
        except ValueError:  # pydantic's among them
            raise OtherVersion(f"job {job} was written by another version of gradcam-queue: update this one") from None

    def written_spec(self, job: str) -> str | None:
        """A job's spec as its release wrote it; None if there is no such job."""
        found = self._field(job, "spec")
        return None if found is None else text(found)

    def outline(self, job: str) -> Outline | None:
        """What can be read of a job, whichever version wrote it; None if there is no such job."""
        fields = ("spec", "queue", "chunk_size", "state")

        def outline(client: redis.Redis) -> Outline | None:
            found = cast("list[bytes | None]", client.hmget(JobKeys(job).hash, fields))
            if None in found:
                return None
            written, queue, size, state = (text(value) for value in found if value is not None)
            spec, chunk_size = from_json(written), count_of(size)
            if not isinstance(spec, dict) or not 1 <= chunk_size <= MAX_CHUNK_SIZE or queue not in PRIORITIES:
                raise ValueError
            return Outline(spec, queue, chunk_size, state)

        return self._scripts.of_job(job, outline)

    def existing_spec(self, job: str) -> JobSpec:
        """What a job computes. Raises UnknownJob, and OtherVersion as `spec`."""
        found = self.spec(job)
        if found is None:
            raise UnknownJob(no_such(job))
        return found[0]

    def existing_outline(self, job: str) -> Outline:
        """What can be read of a job, whichever version wrote it. Raises UnknownJob."""
        found = self.outline(job)
        if found is None:
            raise UnknownJob(no_such(job))
        return found

    def status(self, job: str) -> JobStatus:
        """Everything there is to know about a job now, at a cost that does not grow with it.

        Raises:
            UnknownJob: There is no such job.
            UnreadableJob: It is not as this version writes it.
        """
        parts = JobKeys(job)
        names = [*parts.parts("reasons"), keys.WORKERS, keys.PROBLEMS]
        names += map(parts.part, ("chunks", "items", "waiting", "leases", "timings", "troubles"))
        # A missing last element is how Lua says nil.
        values, reasons, workers, chunks, open_chunks, waiting, in_flight, times, told, at, *problem = (
            self._scripts.run("status", names, [WORKER_SILENT_S, *FIELDS])
        )
        try:
            fields = {name: _shown(value) for name, value in zip(FIELDS, values, strict=True) if value is not None}
            if "state" not in fields:
                raise UnknownJob(no_such(job))
            counts = _counts(reasons)
            timings = {stage: count / 1e6 for stage, count in _counts(times).items()}
            where = ChunkCounts(total=chunks, waiting=waiting, in_flight=in_flight, complete=chunks - open_chunks)
            # What is wrong with this job comes before what is wrong with a worker.
            trouble = problem_of({_shown(k): _shown(v) for k, v in zip(told[::2], told[1::2], strict=True)})
            if trouble is None and problem and problem[0]:
                trouble = _shown(problem[0])
            now = float(at)
            status = make_status(job, fields, counts, where, timings, workers, trouble, now)
            still_s = still_for_s(fields, now)
        except (ValueError, OverflowError, OSError, KeyError) as error:
            raise UnreadableJob(job, "its counts or words" if isinstance(error, ValueError) else str(error)) from None
        if status.ended:
            return status
        wrong = self._server.problem()
        begun = bool(status.done or status.failed)
        asked = is_asked(status.state, in_flight=status.chunks.in_flight, begun=begun, still_s=still_s)
        waited_for = self._registry.waits(now) if asked else ()
        reason = self._why(status, waited_for) if asked else None
        return status.model_copy(
            update={
                "redis_problem": wrong,
                "problem": status.problem or wrong,
                "other_versions": self._other_releases(now) if workers else {},
                "waited_for": waited_for if status.stalled_s is not None else (),
                "waits": reason[1] if reason else None,
                "waits_reason": reason[0] if reason else None,
            }
        )

    def _why(self, status: JobStatus, waited_for: Sequence[Wait]) -> tuple[WaitReason, str] | None:
        if status.state is JobState.PAUSED:
            return why_paused(status.job, next(reversed(self._actions(status.job, -1)), None))
        standing = Standing(
            job=status.job,
            named=bool(status.name),
            waiting=status.chunks.waiting,
            in_flight=status.chunks.in_flight,
            open=status.ingest is Ingest.OPEN,
        )
        return why(standing, self._surroundings(status.job), waited_for, self._server.fullness_lately())

    def _surroundings(self, job: str) -> Surroundings:
        names = [*JobKeys(job).parts("marks", "leases", "troubles"), keys.WORKERS, keys.QUEUES, keys.PROBLEMS]
        found = self._scripts.run("why", names, [job, WORKER_SILENT_S, _MOST_WORKERS, _MOST_JOBS])
        queue, held, loading, delayed_s, silent_s, alive, readers, *rest = found
        faulty, fault, refusing, refusal, ahead, in_hand, more = rest
        return Surroundings(
            queue=_shown(queue),
            loading=0 < held == loading,
            delayed_s=float(delayed_s),
            sender_silent_s=float(silent_s),
            alive=alive,
            readers=readers,
            faulty=faulty,
            fault=_shown(fault),
            refusing=refusing,
            refusal=_shown(refusal),
            ahead=ahead,
            in_hand=in_hand,
            more=more == b"1",
        )

    def _other_releases(self, now: float) -> dict[str, str]:
        found = self._registry.releases(now)
        if not found:
            return {"unknown": "one that does not tell"}
        return {name: worker for name, worker in found.items() if name != release.own()}

    def jobs(
        self,
        *,
        limit: int,
        offset: int = 0,
        keep: Callable[[JobStatus], bool] = lambda _: True,
        misnamed: Callable[[int], None] = lambda _: None,
    ) -> list[JobStatus]:
        """Jobs, newest first; those whose lifetime is over drop out.

        One that cannot be read is among them, as `unreadable`, with the reason as its problem.

        Args:
            limit: At most so many.
            offset: Left out are so many of the newest that `keep` keeps.
            keep: Says which jobs to take.
            misnamed: Called with how many of the entries looked at have names that no job has: they are left out.
        """
        return list(islice(islice(filter(keep, self._newest_first(misnamed)), offset, None), limit))

    def _newest_first(self, misnamed: Callable[[int], None]) -> Iterator[JobStatus]:
        for start in itertools.count(0, _JOBS_AT_ONCE):
            names = self._scripts.do(partial(_page, start=start, stop=start + _JOBS_AT_ONCE - 1))
            jobs = job_names([name for name, _ in names])
            if len(jobs) < len(names):
                misnamed(len(names) - len(jobs))
            created = {name.decode(errors="replace"): created_s for name, created_s in names}
            for job in jobs:
                with suppress(UnknownJob):  # The reconciler drops it.
                    try:
                        yield self.status(job)
                    except UnreadableJob as error:
                        yield unreadable_status(job, str(error), created[job])
            if len(names) < _JOBS_AT_ONCE:
                return

    def chunks(self, job: str) -> dict[int, str]:
        """The chunks of a job that are there: number → digest:count."""

        def chunks(client: redis.Redis) -> dict[int, str]:
            found = cast("dict[bytes, bytes]", client.hgetall(JobKeys(job).part("chunks")))
            # What is no number is no chunk that anybody sent.
            entries = {int(number): text(entry) for number, entry in found.items() if _is_chunk(number)}
            if not all(_ENTRY.fullmatch(entry) for entry in entries.values()):
                raise ValueError
            return entries

        return self._scripts.of_job(job, chunks)

    def items_of(self, job: str, chunk: int) -> dict[int, Item]:
        """The items a chunk still holds, by their offset; none when it is complete.

        Raises:
            UnreadableJob: They are not as this version writes them.
        """

        def items(client: redis.Redis) -> dict[int, Item]:
            payload = cast("bytes | None", client.hget(JobKeys(job).part("items"), str(chunk)))
            try:
                return decompress_items(payload) if payload else {}
            except ValueError:
                raise UnreadableJob(job, f"the images of chunk {chunk}") from None

        return self._scripts.of_job(job, items)

    def states(self, job: str) -> Iterator[tuple[int, bytes]]:
        """The state of every item up to the last that has its end: index of the first, one ItemState byte an item.

        Memory stays flat: a piece is of 65,536 items. It is the bits that say how far to look: while chunks still come
        in, an item may have an index beyond the number of items.
        """
        size = _STATES_AT_ONCE // 4
        for start in itertools.count(0, size):
            packed = self._bits(job, start, size)
            yield start * 4, b"".join(_FOUR_STATES[byte] for byte in packed)
            if len(packed) < size:
                return

    def _bits(self, job: str, start: int, size: int) -> bytes:
        return self._scripts.of_job(job, partial(_get_range, key=JobKeys(job).part("bits"), start=start, size=size))

    def states_at(self, job: str, first: int, count: int) -> bytes:
        """The states of some items in a row, an ItemState byte each; fewer where no later one has its end."""
        start = first // 4
        size = (first + count + 3) // 4 - start
        packed = self._bits(job, start, size)
        return b"".join(_FOUR_STATES[byte] for byte in packed)[first - 4 * start :][:count]

    def failures(self, job: str) -> Iterator[Failure]:
        """The failed images of a job, in order; memory stays flat.

        Raises:
            UnknownJob: There is no such job.
            UnreadableJob: Some could not be read; all others were given before.
        """
        self.status(job)
        unreadable = 0
        for first, states in self.states(job):
            failed = [first + n for n, state in enumerate(states) if state == ItemState.FAILED]
            for start in range(0, len(failed), _FAILURES_AT_ONCE):
                found, broken = self.failures_at(job, failed[start : start + _FAILURES_AT_ONCE])
                unreadable += broken
                yield from found
        if unreadable:
            raise UnreadableJob(job, f"why {unreadable} of its images failed")

    def failures_at(self, job: str, indices: Sequence[int]) -> tuple[list[Failure], int]:
        """The failures of those of the items that failed, and how many could not be read."""
        lines = self._scripts.of_job(
            job,
            lambda client: cast(
                "list[bytes | None]", client.hmget(JobKeys(job).part("failures"), [str(index) for index in indices])
            ),
        )
        found, unreadable = [], 0
        for index, line in zip(indices, lines, strict=True):
            if line is None:
                continue
            try:
                failure = Failure.model_validate_json(line)
            except ValueError:
                unreadable += 1
                continue
            if failure.index == index:
                found.append(failure)
            else:
                unreadable += 1
        return found, unreadable


def _shown(word: bytes) -> str:
    return word.decode(errors="replace")


def _counts(found: Sequence[bytes]) -> dict[str, int]:
    """Names and counts as HGETALL gives them, less those that are no counts: they only tell something."""
    pairs = zip(map(_shown, found[::2]), map(_shown, found[1::2]), strict=True)
    return {name: count_of(count) for name, count in pairs if is_count(count)}


def _page(client: redis.Redis, *, start: int, stop: int) -> list[tuple[bytes, float]]:
    return cast("list[tuple[bytes, float]]", client.zrevrange(keys.JOBS, start, stop, withscores=True))


def _is_chunk(name: bytes) -> bool:
    return _CHUNK.fullmatch(name) is not None and int(name) < 2**31


def _field(client: redis.Redis, job: str, name: str) -> bytes | None:
    return cast("bytes | None", client.hget(JobKeys(job).hash, name))


def _get_range(client: redis.Redis, *, key: str, start: int, size: int) -> bytes:
    return cast("bytes", client.getrange(key, start, start + size - 1))
