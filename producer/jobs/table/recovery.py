"""What the reconciler does in the job table: it finds lost work, and jobs of which Redis lost a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from producer.jobs.model import keys
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.table.redis_scripts import job_names, text
from producer.jobs.table.user_actions import BROKEN_OFF, DAMAGED

if TYPE_CHECKING:
    import redis

    from producer.jobs.table.redis_scripts import Scripts

#: A producer that sends nothing for this long has died; it need not have sent its job's last image by then.
SILENT_INGEST_S = 3600
#: A client that is reopening failed items and says nothing for this long has died; the job goes on without it.
SILENT_RETRY_S = 60.0
#: How many of the oldest, and of the newest jobs are looked at each time.
_JOBS_AT_ONCE = 100
_NOT_ENDED = frozenset({b"running", b"paused", b"finalizing"})


@dataclass(frozen=True)
class Reconciled:
    """Chunks of one job whose lease ran out, and the time to publish their pointers with."""

    published_at: float
    expired: list[int]
    #: How many entries of its chunks had names that are no chunk's; they are dropped.
    misnamed: int = 0


@dataclass(frozen=True)
class Misnamed:
    """Entries of the lists of jobs that no job can be called; they are dropped."""

    count: int
    #: One of those lists.
    where: str
    #: The beginning of a name in it.
    name: str


class Recovery:
    """The transitions that bring lost work back; the reconciler of the workers makes them."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def active(self) -> list[str]:
        """Jobs that have not ended."""
        return sorted(job_names(self._scripts.do(lambda client: cast("set[bytes]", client.smembers(keys.ACTIVE)))))

    def forget_misnamed(self) -> Misnamed | None:
        """Drop what no job can be called from the lists of jobs: somebody else wrote it there."""
        names = [keys.JOBS, keys.ACTIVE, *map(keys.round_robin, PRIORITIES)]
        count, *first = self._scripts.run("forget_misnamed", names, [_JOBS_AT_ONCE])
        return Misnamed(count, *(found.decode(errors="replace") for found in first)) if count else None

    def forget_active(self, job: str) -> None:
        """Remove a job that no longer exists from the active ones, with all keys that are left of it."""
        names = JobKeys(job)
        self._scripts.run("forget", [names.hash, keys.ACTIVE, *map(names.part, keys.JOB_PARTS)], [job])

    def forget_expired(self) -> None:
        """Remove the oldest jobs whose lifetime is over from the list of jobs."""

        def forget(client: redis.Redis) -> None:
            for name in job_names(cast("list[bytes]", client.zrange(keys.JOBS, 0, _JOBS_AT_ONCE - 1))):
                if not client.exists(JobKeys(name).hash):
                    client.zrem(keys.JOBS, name)

        self._scripts.do(forget)

    def restore_active(self) -> None:
        """Add the newest jobs that have not ended to the active ones; Redis may have lost their entries."""

        def look(client: redis.Redis) -> None:
            names = job_names(cast("list[bytes]", client.zrevrange(keys.JOBS, 0, _JOBS_AT_ONCE - 1)))
            if not names:
                return
            with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(JobKeys(name).hash, "state")
                # One whose key is of another type is an error among the answers, and stops none behind it.
                states = cast("list[bytes | Exception | None]", pipe.execute(raise_on_error=False))
            open_ones = [name for name, state in zip(names, states, strict=True) if state in _NOT_ENDED]
            if open_ones:
                client.sadd(keys.ACTIVE, *open_ones)

        self._scripts.do(look)

    def reconcile(self, job: str, *, at_most: int = 100) -> Reconciled:
        """Find chunks whose lease is over. They wait again, and each needs a message."""
        answer = self._scripts.run(
            "reconcile",
            [
                *JobKeys(job).parts(
                    *("waiting", "leases", "holders", "marks", "suspects", "chunks", "items", "bits", "failures")
                ),
                keys.ACTIVE,
            ],
            [at_most, SILENT_INGEST_S, BROKEN_OFF, SILENT_RETRY_S, job, DAMAGED.format(job=job)],
        )
        if answer[0] == b"gone":
            return Reconciled(0, [])
        return Reconciled(float(answer[1]), [int(chunk) for chunk in answer[2]], answer[3])

    def missing_messages(self, queue: str, *, grace_s: float, at_most: int = 1000) -> list[tuple[str, int]]:
        """Find out whether a priority has fewer messages than waiting chunks.

        Args:
            queue: `high`, `default` or `low`.
            grace_s: How long messages must have been missing; before that they may be on their way.
            at_most: How many are given.

        Returns:
            Job and chunk of messages to send.
        """
        names = [
            keys.round_robin(queue),
            keys.QUEUE_PREFIX + queue,
            keys.QUEUE_PREFIX + "recovery",
            keys.missing_messages(queue),
        ]
        answer = self._scripts.run("missing_messages", names, [grace_s, at_most])
        return [(text(job), int(chunk)) for job, chunk in zip(answer[::2], answer[1::2], strict=True)]
