"""What can be asked of the job table; nothing here changes it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import cast

import redis
from pydantic import ValidationError

from producer.jobs import keys, release
from producer.jobs.control import Control
from producer.jobs.errors import JobError, UnknownJob, no_such
from producer.jobs.keys import JobKeys
from producer.jobs.roster import WORKER_SILENT_S, Roster
from producer.jobs.scripts import PATIENCE_S, Scripts, text
from producer.jobs.server import Server
from producer.jobs.spec import ChunkCounts, Failure, JobSpec, JobStatus
from producer.jobs.states import JobState
from producer.jobs.status import FIELDS, make_status

#: Facts that `annotate` may note: what the weights were, which layer was meant.
FACTS = ("weights_sha256", "layer", "guided_relus", "worker_versions")
_JOBS_AT_ONCE = 100


class Reads:
    """Every read of jobs, and the parts of the table: what a user does, the workers, and Redis itself."""

    def __init__(self, client: redis.Redis, *, patience_s: float = PATIENCE_S) -> None:
        self.redis = client
        self._scripts = Scripts(client, patience_s=patience_s)
        self.control = Control(self._scripts)
        self.roster = Roster(self._scripts)
        self.server = Server(self._scripts)

    def facts(self, job: str) -> dict[str, str]:
        """What workers noted with `annotate`."""
        values = self._scripts.do(lambda client: cast("list[bytes | None]", client.hmget(JobKeys(job).hash, FACTS)))
        return {name: text(value) for name, value in zip(FACTS, values, strict=True) if value is not None}

    def histogram(self, job: str) -> dict[str, int]:
        """How many images were explained for each class: `class_key` → count."""
        found = self._scripts.do(
            lambda client: cast("dict[bytes, bytes]", client.hgetall(JobKeys(job).part("classes")))
        )
        return {text(name): int(count) for name, count in found.items()}

    def spec(self, job: str) -> tuple[JobSpec, JobState] | None:
        """What a job computes and where it stands; None if there is no such job.

        Raises:
            JobError: Another version of this program wrote it.
        """
        written, state = self._scripts.do(
            lambda client: cast("list[bytes | None]", client.hmget(JobKeys(job).hash, ("spec", "state")))
        )
        if written is None or state is None:
            return None
        try:
            return JobSpec.model_validate_json(written), JobState(text(state))
        except ValidationError:
            raise JobError(f"job {job} was written by another version of gradcam-queue: update this one") from None

    def status(self, job: str) -> JobStatus:
        """Everything there is to know about a job now, at a cost that does not grow with it.

        Raises:
            UnknownJob: There is no such job.
        """
        parts = JobKeys(job)
        names = [*parts.parts("reasons"), keys.WORKERS, keys.PROBLEMS]
        names += map(parts.part, ("chunks", "items", "waiting", "leases", "timings"))
        # A missing last element is how Lua says nil.
        values, reasons, workers, chunks, open_chunks, waiting, in_hand, times, at, *problem = self._scripts.run(
            "status", names, [WORKER_SILENT_S, *FIELDS]
        )
        fields = {name: text(value) for name, value in zip(FIELDS, values, strict=True) if value is not None}
        if "state" not in fields:
            raise UnknownJob(no_such(job))
        counts = {text(k): int(v) for k, v in zip(reasons[::2], reasons[1::2], strict=True)}
        timings = {text(k): int(v) / 1e6 for k, v in zip(times[::2], times[1::2], strict=True)}
        where = ChunkCounts(total=chunks, waiting=waiting, in_hand=in_hand, complete=chunks - open_chunks)
        told, now = text(problem[0]) if problem and problem[0] else None, float(at)
        status = make_status(job, fields, counts, where, timings, workers, told, now)
        if status.ended:
            return status
        wrong = self.server.problem()
        return status.model_copy(
            update={
                "redis_problem": wrong,
                "problem": status.problem or wrong,
                "other_versions": self._other_releases(now) if workers else {},
                "waits": self.roster.waits(now) if status.stalled_s is not None else (),
            }
        )

    def _other_releases(self, now: float) -> dict[str, str]:
        found = self.roster.releases(now)
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
        return list(islice(filter(keep, self._newest_first()), offset, offset + limit))

    def _newest_first(self) -> Iterator[JobStatus]:
        for start in itertools.count(0, _JOBS_AT_ONCE):
            names = self._scripts.do(partial(_page, start=start, stop=start + _JOBS_AT_ONCE - 1))
            for name in names:
                with suppress(UnknownJob):  # The reconciler drops it.
                    yield self.status(text(name))
            if len(names) < _JOBS_AT_ONCE:
                return

    def failures(self, job: str) -> Iterator[Failure]:
        """The failed images of a job, in order.

        Raises:
            UnknownJob: There is no such job.
        """
        self.status(job)
        yield from self.control.failures(job)


def _page(client: redis.Redis, *, start: int, stop: int) -> list[bytes]:
    return cast("list[bytes]", client.zrevrange(keys.JOBS, start, stop))
