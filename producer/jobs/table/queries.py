"""Every read of the job table; nothing here changes it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import redis

from producer.jobs.model import keys, release
from producer.jobs.model.errors import OtherVersion, UnknownJob, no_such
from producer.jobs.model.items import Item, decompress_items
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import ItemState, JobState
from producer.jobs.model.status import FIELDS, ChunkCounts, JobStatus, make_status
from producer.jobs.table.redis_scripts import Scripts, text
from producer.jobs.table.redis_server import Server
from producer.jobs.table.troubles import problem_of
from producer.jobs.table.workers import WORKER_SILENT_S, WorkerRegistry

#: Facts that `annotate` may note: what the weights were and what was taken of their file, which layer was meant, what
#: the network read.
FACTS = ("weights_sha256", "weights_read", "layer", "preprocessing", "guided_relus", "worker_versions")
_JOBS_AT_ONCE = 100
_STATES_AT_ONCE = 65_536
_FAILURES_AT_ONCE = 500
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
        values = self._scripts.do(lambda client: cast("list[bytes | None]", client.hmget(JobKeys(job).hash, FACTS)))
        return {name: text(value) for name, value in zip(FACTS, values, strict=True) if value is not None}

    def pinned_weights(self, job: str) -> str | None:
        """The SHA-256 of the weights that a job is explained by, once a worker has loaded them."""
        found = self._scripts.do(lambda client: cast("bytes | None", client.hget(JobKeys(job).hash, "weights_sha256")))
        return None if found is None else text(found)

    def histogram(self, job: str) -> dict[str, int]:
        """How many images were explained for each class: `class_key` → count."""
        found = self._scripts.do(
            lambda client: cast("dict[bytes, bytes]", client.hgetall(JobKeys(job).part("classes")))
        )
        return {text(name): int(count) for name, count in found.items()}

    def place_of_summary(self, job: str) -> str | None:
        """Where the summary of a job that has ended was written, as bucket/prefix; None where it was not."""
        outline = self.outline(job)
        written = self._scripts.do(lambda client: cast("bytes | None", client.hget(JobKeys(job).hash, "summary")))
        return str(outline.spec.get("store", "")) if outline and written == b"1" else None

    def since(self, job: str) -> int:
        """The first token that records of a job may have; parts with a lower one are an earlier job's of its name."""
        found = self._scripts.do(lambda client: cast("bytes | None", client.hget(JobKeys(job).hash, "since")))
        return int(found or 0)

    def spec(self, job: str) -> tuple[JobSpec, JobState] | None:
        """What a job computes and where it stands; None if there is no such job.

        Raises:
            OtherVersion: Another version of this program wrote it.
        """
        written, state = self._scripts.do(
            lambda client: cast("list[bytes | None]", client.hmget(JobKeys(job).hash, ("spec", "state")))
        )
        if written is None or state is None:
            return None
        try:
            return JobSpec.model_validate_json(written), JobState(text(state))
        except ValueError:  # pydantic's among them
            raise OtherVersion(f"job {job} was written by another version of gradcam-queue: update this one") from None

    def outline(self, job: str) -> Outline | None:
        """What can be read of a job, whichever version wrote it; None if there is no such job."""
        fields = ("spec", "queue", "chunk_size", "state")
        found = self._scripts.do(lambda client: cast("list[bytes | None]", client.hmget(JobKeys(job).hash, fields)))
        if None in found:
            return None
        written, queue, size, state = (text(value) for value in found if value is not None)
        return Outline(json.loads(written), queue, int(size), state)

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
        """
        parts = JobKeys(job)
        names = [*parts.parts("reasons"), keys.WORKERS, keys.PROBLEMS]
        names += map(parts.part, ("chunks", "items", "waiting", "leases", "timings", "troubles"))
        # A missing last element is how Lua says nil.
        values, reasons, workers, chunks, open_chunks, waiting, in_flight, times, told, at, *problem = (
            self._scripts.run("status", names, [WORKER_SILENT_S, *FIELDS])
        )
        fields = {name: text(value) for name, value in zip(FIELDS, values, strict=True) if value is not None}
        if "state" not in fields:
            raise UnknownJob(no_such(job))
        counts = {text(k): int(v) for k, v in zip(reasons[::2], reasons[1::2], strict=True)}
        timings = {text(k): int(v) / 1e6 for k, v in zip(times[::2], times[1::2], strict=True)}
        where = ChunkCounts(total=chunks, waiting=waiting, in_flight=in_flight, complete=chunks - open_chunks)
        # What is wrong with this job comes before what is wrong with a worker.
        trouble = problem_of({text(k): text(v) for k, v in zip(told[::2], told[1::2], strict=True)})
        if trouble is None and problem and problem[0]:
            trouble = text(problem[0])
        now = float(at)
        status = make_status(job, fields, counts, where, timings, workers, trouble, now)
        if status.ended:
            return status
        wrong = self._server.problem()
        return status.model_copy(
            update={
                "redis_problem": wrong,
                "problem": status.problem or wrong,
                "other_versions": self._other_releases(now) if workers else {},
                "waits": self._registry.waits(now) if status.stalled_s is not None else (),
            }
        )

    def _other_releases(self, now: float) -> dict[str, str]:
        found = self._registry.releases(now)
        if not found:
            return {"unknown": "one that does not tell"}
        return {name: worker for name, worker in found.items() if name != release.own()}

    def jobs(
        self, *, limit: int, offset: int = 0, keep: Callable[[JobStatus], bool] = lambda _: True
    ) -> list[JobStatus]:
        """Jobs, newest first; those whose lifetime is over drop out.

        Args:
            limit: At most so many.
            offset: Left out are so many of the newest that `keep` keeps.
            keep: Says which jobs to take.
        """
        return list(islice(islice(filter(keep, self._newest_first()), offset, None), limit))

    def _newest_first(self) -> Iterator[JobStatus]:
        for start in itertools.count(0, _JOBS_AT_ONCE):
            names = self._scripts.do(partial(_page, start=start, stop=start + _JOBS_AT_ONCE - 1))
            for name in names:
                with suppress(UnknownJob):  # The reconciler drops it.
                    yield self.status(text(name))
            if len(names) < _JOBS_AT_ONCE:
                return

    def chunks(self, job: str) -> dict[int, str]:
        """The chunks of a job that are there: number → digest:count."""
        found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(JobKeys(job).part("chunks"))))
        return {int(number): text(value) for number, value in found.items()}

    def items_of(self, job: str, chunk: int) -> dict[int, Item]:
        """The items a chunk still holds, by their offset; none when it is complete."""
        payload = self._scripts.do(lambda client: client.hget(JobKeys(job).part("items"), str(chunk)))
        return decompress_items(cast("bytes", payload)) if payload else {}

    def states(self, job: str) -> Iterator[tuple[int, bytes]]:
        """The state of every item up to the last that has its end: index of the first, one ItemState byte an item.

        Memory stays flat: a piece is of 65,536 items. It is the bits that say how far to look: while chunks still come
        in, an item may have an index beyond the number of items.
        """
        size = _STATES_AT_ONCE // 4
        for start in itertools.count(0, size):
            packed = self._scripts.do(partial(_get_range, key=JobKeys(job).part("bits"), start=start, size=size))
            yield start * 4, b"".join(_FOUR_STATES[byte] for byte in packed)
            if len(packed) < size:
                return

    def states_at(self, job: str, first: int, count: int) -> bytes:
        """The states of some items in a row, an ItemState byte each; fewer where no later one has its end."""
        start = first // 4
        packed = self._scripts.do(
            partial(_get_range, key=JobKeys(job).part("bits"), start=start, size=(first + count + 3) // 4 - start)
        )
        return b"".join(_FOUR_STATES[byte] for byte in packed)[first - 4 * start :][:count]

    def failures(self, job: str) -> Iterator[Failure]:
        """The failed images of a job, in order; memory stays flat.

        Raises:
            UnknownJob: There is no such job.
        """
        self.status(job)
        for first, states in self.states(job):
            failed = [first + n for n, state in enumerate(states) if state == ItemState.FAILED]
            for start in range(0, len(failed), _FAILURES_AT_ONCE):
                yield from self.failures_at(job, failed[start : start + _FAILURES_AT_ONCE])

    def failures_at(self, job: str, indices: Sequence[int]) -> list[Failure]:
        """The failures of those of the items that failed."""
        found = self._scripts.do(
            lambda client: cast(
                "list[bytes | None]", client.hmget(JobKeys(job).part("failures"), [str(index) for index in indices])
            )
        )
        return [Failure.model_validate_json(line) for line in found if line is not None]


def _page(client: redis.Redis, *, start: int, stop: int) -> list[bytes]:
    return cast("list[bytes]", client.zrevrange(keys.JOBS, start, stop))


def _get_range(client: redis.Redis, *, key: str, start: int, size: int) -> bytes:
    return cast("bytes", client.getrange(key, start, start + size - 1))
