"""The job table in Redis: the truth about every job; Celery's messages only point into it.

Each transition is one Lua script (`lua/`), idempotent, so that a command repeated after a lost reply counts nothing
twice. All times are the server's. Which keys there are: `keys.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import redis

from producer.jobs import keys
from producer.jobs.control import BROKEN_OFF
from producer.jobs.errors import UnknownJob, UsageError, no_such
from producer.jobs.keys import JobKeys
from producer.jobs.reads import Reads
from producer.jobs.scripts import text
from producer.jobs.spec import Chunk, Failure, Item, JobSpec, unpack
from producer.jobs.states import ItemState, JobState
from producer.jobs.status import to_time

#: A producer that sends nothing for this long has died; it need not have sent its job's last image by then.
SILENT_INGEST_S = 3600
#: How long the one who writes a job's summary may take before another may try.
FINALISER_LEASE_S = 30.0
#: A client that is reopening failed items and says nothing for this long has died; the job goes on without it.
SILENT_RETRY_S = 60.0
#: A producer waits when Redis holds more than this share of its `maxmemory`: the rest is what workers need to go on.
FULL_SHARE = 0.8
_SUSPECT = re.compile(r"(\d+)=(\d+)")


@dataclass(frozen=True)
class Claim:
    """A chunk in hand: what to do, and the token that proves whose it is."""

    job: str
    chunk: int
    token: int
    attempt: int
    spec: JobSpec
    #: offset → item, of all that still need work and perhaps of others.
    items: dict[int, Item]
    #: Which items still need work: their offsets in the chunk.
    pending: list[int]
    #: offset → weight of the deaths it was alone in, of items that a dead holder had marked.
    suspects: dict[int, int] = field(default_factory=dict)
    #: The job's: one more with each retry.
    generation: int = 1

    def index(self, offset: int) -> int:
        """The index in the job of the item at that offset."""
        return self.chunk * self.spec.chunk_size + offset


@dataclass(frozen=True)
class Committed:
    """What a commit changed."""

    done: int
    failed: int
    complete: bool
    state: JobState


@dataclass(frozen=True)
class Reconciled:
    """Chunks of one job whose lease ran out, and the time to publish their pointers with."""

    published_at: float
    expired: list[int]


@dataclass(frozen=True)
class Finalising:
    """The right to write a job's summary and to enter its end."""

    end: JobState
    at: datetime
    generation: int


class JobTable(Reads):
    """Every read and every transition of jobs; safe to share between threads.

    Every method waits for a Redis that is away, starting or full, up to `patience_s` seconds, and then raises
    ServiceError; whatever it sent may be sent again.
    """

    # -- the producer's side -------------------------------------------------------------------------------------

    def create(self, job: str, spec: JobSpec, *, name: str | None = None, lifetime_s: float) -> bool:
        """Make a job.

        Returns:
            Whether it is new; making the same one again is allowed.

        Raises:
            UsageError: A job of that name exists with another spec.
        """
        answer = self._scripts.run(
            "create",
            [JobKeys(job).hash, keys.JOBS, keys.ACTIVE, keys.turns(spec.queue)],
            [job, spec.model_dump_json(), name or "", spec.network, spec.queue, lifetime_s, spec.chunk_size],
        )
        if answer == b"differs":
            found = self.spec(job)
            differing = found[0].differing(spec) if found else "it is gone by now"
            raise UsageError(
                f"a job named {job} exists with other parameters ({differing}): choose another --name, or give the "
                "same parameters"
            )
        return bool(answer == b"created")

    def add_chunk(self, job: str, chunk: Chunk) -> float | None:
        """Add a chunk of items.

        Returns:
            The time to publish its pointer with, or None when it was there already.

        Raises:
            UsageError: The job holds other items in that place, or takes no more.
        """
        answer = self._scripts.run(
            "add_chunk",
            JobKeys(job).parts("chunks", "items", "waiting"),
            [chunk.number, chunk.count, chunk.digest, chunk.payload],
        )
        match text(answer[0]):
            case "added":
                return float(answer[1])
            case "same":
                return None
            case "differs":
                raise UsageError(f"job {job} was made from another source: choose another --name for this one")
            case "gone":
                raise UnknownJob(no_such(job))
            case state:
                raise UsageError(f"job {job} takes no more images: it is {state}")

    def close(self, job: str, *, chunks: int, items: int) -> int:
        """Say that no more items come, unless some of those that were sent are not there.

        Returns:
            How many images Redis holds; `items` when the ingest is closed. Redis may have lost its last second.

        Raises:
            UnknownJob: It has lost the whole job.
        """
        answer = self._scripts.run("close", JobKeys(job).parts("chunks"), [chunks, items])
        if answer[0] == b"gone":
            raise UnknownJob(no_such(job))
        return int(answer[2]) if answer[0] == b"missing" else items

    def to_disk(self) -> None:
        """Wait until what this process wrote last is on Redis' disk, where it has one and can tell (since 7.2)."""

        def wait(client: redis.Redis) -> None:
            with suppress(redis.exceptions.ResponseError):
                client.waitaof(1, 0, 2000)

        self._scripts.do(wait)

    def chunks(self, job: str) -> dict[int, str]:
        """The chunks of a job that are there: number → digest:count."""
        found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(JobKeys(job).part("chunks"))))
        return {int(number): text(value) for number, value in found.items()}

    def fail(self, job: str, sentence: str) -> None:
        """Bring a job to its end because of something that all its images share."""
        self._scripts.run("fail", [JobKeys(job).hash], [sentence])

    # -- the worker's side ---------------------------------------------------------------------------------------

    def annotate(self, job: str, **facts: str) -> None:
        """Keep facts that only a worker can know with a job that runs."""
        self._scripts.run("annotate", [JobKeys(job).hash], [part for pair in facts.items() for part in pair])

    def take(self, queues: Sequence[str]) -> tuple[str, bytes] | None:
        """Read the next message of the first queue that has one, as it lies there; None when all are empty."""
        answer = self._scripts.run("take", [keys.QUEUE_PREFIX + queue for queue in queues], [])
        return (queues[int(answer[0]) - 1], answer[1]) if answer else None

    def turn(self, queue: str, job: str, chunk: int, *, exact: bool) -> tuple[str, int] | None:
        """Which chunk a message is worth: that of the job of its class whose last turn is longest ago.

        Args:
            queue: The class of service.
            job: What the message says.
            chunk: What the message says.
            exact: Whether that very chunk is meant, as long as it waits.

        Returns:
            Job and chunk, None when nothing waits.
        """
        answer = self._scripts.run("turn", [keys.turns(queue)], [job, chunk, int(exact)])
        return (text(answer[0]), int(answer[1])) if answer else None

    def claim(self, job: str, chunk: int, spec: JobSpec, *, claim_id: str, lease_s: float) -> Claim | None:
        """Take a chunk for a time; None when there is nothing to do for this pointer.

        The same `claim_id` asking twice gets the same lease: its first reply may have been lost.
        """
        answer = self._scripts.run(
            "claim",
            JobKeys(job).parts(
                "chunks", "items", "waiting", "leases", "holders", "attempts", "bits", "marks", "suspects"
            ),
            [chunk, claim_id, lease_s],
        )
        if answer[0] != b"claimed":
            return None
        _, token, attempt, payload, states, suspects, generation = answer
        pending = [offset for offset, state in enumerate(states) if state == ItemState.PENDING]
        weights = {int(offset): int(weight) for offset, weight in _SUSPECT.findall(text(suspects))}
        return Claim(job, chunk, token, attempt, spec, unpack(payload), pending, weights, generation)

    def renew(self, claim: Claim, *, lease_s: float, marked: Sequence[int] | None = None) -> bool:
        """Keep the lease after progress; False makes the holder stop.

        Args:
            claim: The chunk in hand.
            lease_s: How long it stays ours from now.
            marked: Offsets of the items that are about to be decoded or computed, which come under suspicion if this
                process dies; as they were when absent.
        """
        marks = [] if marked is None else [",".join(map(str, marked))]
        answer = self._scripts.run(
            "renew", JobKeys(claim.job).parts("leases", "holders", "marks"), [claim.chunk, claim.token, lease_s, *marks]
        )
        return bool(answer == b"renewed")

    def commit(
        self,
        claim: Claim,
        *,
        done: Mapping[int, str] | Sequence[int],
        failed: Sequence[Failure],
        lease_s: float,
        seconds: Mapping[str, float] | None = None,
    ) -> Committed | None:
        """Record the ends of items; None when the job has ended and takes no more.

        Args:
            claim: The chunk in hand, or once in hand: an old token may still record `done`.
            done: Offsets of items whose pictures and manifest lie in the object store, with the class each was
                explained for, as `class_key` makes it.
            failed: Items with their own fault.
            lease_s: The lease that goes on if the chunk is not complete.
            seconds: stage → work of all these items.
        """
        first = claim.index(0)
        classes = done if isinstance(done, Mapping) else dict.fromkeys(done, "")
        stages = {stage: round(1e6 * value) for stage, value in (seconds or {}).items()}
        arguments: list[Any] = [claim.chunk, claim.token, lease_s, len(classes), len(stages)]
        arguments += [part for pair in (*classes.items(), *stages.items()) for part in pair]
        for failure in failed:
            arguments += [failure.index - first, failure.reason, failure.model_dump_json(exclude_none=True)]
        answer = self._scripts.run("commit", JobKeys(claim.job).parts(*keys.JOB_PARTS), arguments)
        if answer[0] != b"committed":
            return None
        return Committed(answer[1], answer[2], bool(answer[3]), JobState(text(answer[4])))

    def release(self, claim: Claim) -> float | None:
        """Give the chunk back unfinished.

        Returns:
            The time to publish its pointer with; None if it was not ours any more, or the job is paused.
        """
        answer = self._scripts.run(
            "release",
            JobKeys(claim.job).parts("waiting", "leases", "holders", "attempts", "marks"),
            [claim.chunk, claim.token],
        )
        return _published_at(answer)

    def bury(self, job: str, chunk: int, *, claim_id: str, weight: int, marked: Sequence[int] = ()) -> float | None:
        """Say that the holder of a chunk is dead, so that nobody waits for its lease to run out.

        Args:
            job: Its id.
            chunk: Which one.
            claim_id: The dead holder's.
            weight: How much this death speaks against an item that was alone under the holder's mark.
            marked: What the holder had marked, as its parent knows it: its lease may have run out before.

        Returns:
            As `release`.
        """
        answer = self._scripts.run(
            "bury",
            JobKeys(job).parts("waiting", "leases", "holders", "marks", "suspects", "items"),
            [chunk, claim_id, weight, ",".join(map(str, marked))],
        )
        return _published_at(answer)

    def finalise(self, job: str, who: str, *, lease_s: float = FINALISER_LEASE_S) -> Finalising | None:
        """Become the one who writes the job's summary; None if it is not ours."""
        answer = self._scripts.run("finalise", JobKeys(job).parts("finaliser"), [who, lease_s])
        if answer[0] != b"yours":
            return None
        return Finalising(JobState(text(answer[1])), to_time(answer[2]), int(answer[3]))

    def finish(self, job: str, who: str, mine: Finalising) -> bool:
        """Enter the end; False when somebody else did."""
        names = JobKeys(job)
        first = ("items", "waiting", "leases", "holders", "attempts", "marks", "suspects")
        others = [part for part in keys.JOB_PARTS if part not in first]
        answer = self._scripts.run(
            "finish",
            [names.hash, keys.ACTIVE, names.part("finaliser"), *map(names.part, (*first, *others))],
            [who, job, mine.end.value, f"{mine.at.timestamp():.3f}", mine.generation],
        )
        return bool(answer == b"ended")

    # -- repair --------------------------------------------------------------------------------------------------

    def active(self) -> list[str]:
        """Jobs that have not ended."""
        members = self._scripts.do(lambda client: cast("set[bytes]", client.smembers(keys.ACTIVE)))
        return sorted(text(member) for member in members)

    def forget_active(self, job: str) -> None:
        """Drop a job that is not there from the set of active ones."""
        self._scripts.do(lambda client: client.srem(keys.ACTIVE, job))

    def forget_expired(self, at_most: int = 100) -> None:
        """Drop the oldest jobs whose lifetime is over from the list of jobs."""

        def forget(client: redis.Redis) -> None:
            for name in cast("list[bytes]", client.zrange(keys.JOBS, 0, at_most - 1)):
                if not client.exists(JobKeys(text(name)).hash):
                    client.zrem(keys.JOBS, name)

        self._scripts.do(forget)

    def reconcile(self, job: str, *, at_most: int = 100) -> Reconciled:
        """Find chunks whose lease ran out; they wait again, and need a message each."""
        answer = self._scripts.run(
            "reconcile",
            JobKeys(job).parts("waiting", "leases", "holders", "marks", "suspects"),
            [at_most, SILENT_INGEST_S, BROKEN_OFF, SILENT_RETRY_S],
        )
        if answer[0] == b"gone":
            return Reconciled(0, [])
        return Reconciled(float(answer[1]), [int(chunk) for chunk in answer[2]])

    def deficit(self, queue: str, *, grace_s: float, at_most: int = 1000) -> list[tuple[str, int]]:
        """Find out whether a class of service has fewer messages left than chunks that wait.

        Args:
            queue: `high`, `default` or `low`.
            grace_s: How long messages have to be missing all along: until then they may be on their way.
            at_most: How many are given.

        Returns:
            Job and chunk of messages to send.
        """
        names = [keys.turns(queue), keys.QUEUE_PREFIX + queue, keys.QUEUE_PREFIX + "recovery", keys.deficit(queue)]
        answer = self._scripts.run("deficit", names, [grace_s, at_most])
        return [(text(job), int(chunk)) for job, chunk in zip(answer[::2], answer[1::2], strict=True)]


def _published_at(answer: list[bytes]) -> float | None:
    return float(answer[1]) if answer[0] == b"released" and answer[2] == b"running" else None
