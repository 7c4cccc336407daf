"""The job table in Redis: the truth about every job; Celery's messages only point into it.

Each transition is one Lua script (`lua/`), idempotent, so that a command repeated after a lost reply counts nothing
twice. All times are the server's. Which keys there are: `keys.py`.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

import redis

from producer.jobs.model import keys
from producer.jobs.model.errors import JobEnded, OtherVersion, UnknownJob, UsageError, no_such
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.spec import Chunk, Failure, Item, JobSpec, decompress_items
from producer.jobs.model.states import ItemState, JobState
from producer.jobs.model.status import to_time
from producer.jobs.table.queries import Queries
from producer.jobs.table.redis_scripts import text
from producer.jobs.table.user_actions import BROKEN_OFF, DAMAGED, refusal

#: A producer that sends nothing for this long has died; it need not have sent its job's last image by then.
SILENT_INGEST_S = 3600
#: How long the one who writes a job's summary may take before another may try.
FINALIZER_LEASE_S = 30.0
#: How long one who could not write it leaves it to others.
FINALIZER_PAUSE_S = 10.0
#: A client that is reopening failed items and says nothing for this long has died; the job goes on without it.
SILENT_RETRY_S = 60.0
#: A producer waits when Redis holds more than this share of its `maxmemory`: the rest is what workers need to go on.
FULL_SHARE = 0.8
_SUSPECT = re.compile(r"(\d+)=(\d+)")
_NOT_ENDED = frozenset({b"running", b"paused", b"finalizing"})


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
    #: The job's, since its name was given: what is said of another life of that name does not count.
    life: str = ""
    #: Of this generation: a number that goes up with each, also when Redis was wiped in between.
    epoch: int = 0
    #: Whether a worker had trouble with the job.
    troubled: bool = False
    #: Whether a process died while it loaded the job's model, which nobody has loaded since.
    load_suspect: bool = False

    def index(self, offset: int) -> int:
        """The index in the job of the item at that offset."""
        return self.chunk * self.spec.chunk_size + offset


@dataclass(frozen=True)
class Created:
    """A job that is there now."""

    #: Whether it was not there before.
    new: bool
    life: str
    #: The first token that records of it may have.
    since: int


@dataclass(frozen=True)
class LeftAlone:
    """Chunks wait in a priority, all of jobs that the worker leaves alone: the message is for others."""

    queue: str


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
class Finalizing:
    """The right to write a job's summary and to enter its end."""

    end: JobState
    at: datetime
    generation: int
    life: str


class JobTable(Queries):
    """Every read and every transition of jobs; safe to share between threads.

    Every method waits for a Redis that is away, starting or full, up to `patience_s` seconds, and then raises
    ServiceError; whatever it sent may be sent again.
    """

    # -- the producer's side -------------------------------------------------------------------------------------

    def create(self, job: str, spec: JobSpec, *, name: str | None = None, lifetime_s: float) -> Created:
        """Make a job; making the same one again is allowed.

        Raises:
            UsageError: A job of that name exists with another spec, or is being repaired or deleted.
        """
        answer = self._scripts.run(
            "create",
            [JobKeys(job).hash, keys.JOBS, keys.ACTIVE, keys.round_robin(spec.queue)],
            [
                *(job, spec.model_dump_json(), name or "", spec.network, spec.queue, lifetime_s, spec.chunk_size),
                secrets.token_hex(8),
            ],
        )
        if answer[0] == b"differs":
            found = self.spec(job)
            differing = found[0].differing(spec) if found else "it is gone by now"
            raise UsageError(
                f"a job named {job} exists with other parameters ({differing}): choose another --name, or give the "
                "same parameters"
            )
        if answer[0] not in {b"created", b"same"}:
            raise UsageError(refusal(job, text(answer[0])))
        return Created(answer[0] == b"created", text(answer[1]), int(answer[2]))

    def discard(self, job: str, spec: JobSpec, life: str) -> None:
        """Take back a job that was just made, of which nothing was sent."""
        names = [JobKeys(job).hash, keys.JOBS, keys.ACTIVE, keys.round_robin(spec.queue)]
        self._scripts.run("discard", names, [job, life])

    def adopt(self, job: str, life: str, since: int) -> None:
        """Say from which token on records in the store belong to this job: an earlier life in Redis wrote some."""
        self._scripts.run("adopt", [JobKeys(job).hash], [life, since])

    def add_chunk(self, job: str, chunk: Chunk, *, life: str = "") -> float | None:
        """Add a chunk of items.

        Returns:
            The time to publish its pointer with, or None when it was there already.

        Raises:
            UnknownJob: It is not there, or another of its name is.
            UsageError: The job holds other items in that place.
            JobEnded: It takes no more.
        """
        answer = self._scripts.run(
            "add_chunk",
            JobKeys(job).parts("chunks", "items", "waiting"),
            [chunk.number, chunk.count, chunk.digest, chunk.payload, life],
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
                raise JobEnded(f"job {job} takes no more images: it is {state}")

    def close(self, job: str, *, chunks: int, items: int, life: str = "") -> int:
        """Say that no more items come, unless some of those that were sent are not there.

        Returns:
            How many images Redis holds; `items` when the ingest is closed. Redis may have lost its last second.

        Raises:
            UnknownJob: It has lost the whole job.
        """
        answer = self._scripts.run("close", JobKeys(job).parts("chunks"), [chunks, items, life])
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

    def fail(self, job: str, sentence: str, *, claim: Claim | None = None, life: str | None = None) -> None:
        """Bring a job to its end because of something that all its images share.

        Args:
            job: Its id.
            sentence: Why.
            claim: Of a worker that says so: it counts only while that holds the chunk.
            life: Of a producer that says so: it counts only for that life of the job.
        """
        whose: list[Any] = [] if life is None else [life]
        if claim is not None:
            whose = [claim.chunk, claim.token, claim.life, claim.epoch]
        self._scripts.run("fail", JobKeys(job).parts("holders"), [sentence, *whose])

    # -- the worker's side ---------------------------------------------------------------------------------------

    def annotate(self, job: str, life: str = "", **facts: str) -> None:
        """Keep facts that only a worker can know with a job that runs."""
        self._scripts.run("annotate", [JobKeys(job).hash], [life, *(part for pair in facts.items() for part in pair)])

    def pop_message(self, queues: Sequence[str]) -> tuple[str, bytes] | None:
        """Read the next message of the first queue that has one, as it lies there; None when all are empty."""
        answer = self._scripts.run("pop_message", [keys.QUEUE_PREFIX + queue for queue in queues], [])
        return (queues[int(answer[0]) - 1], answer[1]) if answer else None

    def next_chunk(
        self, queue: str, job: str, chunk: int, *, exact: bool, worker: str = ""
    ) -> tuple[str, int] | LeftAlone | None:
        """Which chunk a message is worth: that of the job of its class whose last turn is longest ago.

        Args:
            queue: The priority.
            job: What the message says.
            chunk: What the message says.
            exact: Whether that very chunk is meant, as long as it waits and its job is in no trouble.
            worker: Who asks; jobs that it leaves alone (`troubles`) are not its.

        Returns:
            Job and chunk; LeftAlone when only jobs wait that the worker leaves alone; None when nothing waits.
        """
        answer = self._scripts.run("next_chunk", [keys.round_robin(queue)], [job, chunk, int(exact), worker])
        if len(answer) == 1:
            return LeftAlone(text(answer[0]))
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
        _, token, attempt, payload, states, suspects, generation, life, epoch = answer
        pending = [offset for offset, state in enumerate(states) if state == ItemState.PENDING]
        weighed, troubled, loads = text(suspects).partition(";")
        claim = Claim(
            job,
            chunk,
            token,
            attempt,
            spec,
            items={},
            pending=pending,
            suspects={int(offset): int(weight) for offset, weight in _SUSPECT.findall(weighed)},
            generation=generation,
            life=text(life),
            epoch=int(epoch),
            troubled=bool(troubled),
            load_suspect=bool(loads),
        )
        try:
            return replace(claim, items=decompress_items(payload))
        except (zlib.error, ValueError):  # pydantic's among them
            self.release(claim)
            raise OtherVersion(f"the images of job {job} were written by another version of gradcam-queue") from None

    def renew(
        self, claim: Claim, *, lease_s: float, marked: Sequence[int] | None = None, loading: bool = False
    ) -> bool:
        """Keep the lease after progress; False makes the holder stop.

        Args:
            claim: The chunk in hand.
            lease_s: How long it stays ours from now.
            marked: Offsets of the items that are about to be decoded or computed, which come under suspicion if this
                process dies; as they were when absent.
            loading: The model is about to be loaded: it is the job that comes under suspicion.
        """
        marks = ["load"] if loading else [] if marked is None else [",".join(map(str, marked))]
        answer = self._scripts.run(
            "renew",
            JobKeys(claim.job).parts("leases", "holders", "marks"),
            [claim.chunk, claim.token, lease_s, claim.life, *marks],
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
            claim: The chunk in hand, or once in hand: an old token of this generation may still record `done`.
            done: Offsets of items whose pictures and manifest lie in the object store, with the class each was
                explained for, as `class_key` makes it.
            failed: Items with their own fault.
            lease_s: The lease that goes on if the chunk is not complete.
            seconds: stage → work of all these items.
        """
        first = claim.index(0)
        classes = done if isinstance(done, Mapping) else dict.fromkeys(done, "")
        stages = {stage: round(1e6 * value) for stage, value in (seconds or {}).items()}
        arguments: list[Any] = [claim.chunk, claim.token, lease_s, claim.life, claim.epoch, len(classes), len(stages)]
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
            [claim.chunk, claim.token, claim.life],
        )
        return _published_at(answer)

    def reclaim_from_dead(
        self,
        job: str,
        chunk: int,
        *,
        claim_id: str,
        weight: int,
        marked: Sequence[int] = (),
        life: str = "",
        loading: bool = False,
    ) -> float | None:
        """Say that the holder of a chunk is dead, so that nobody waits for its lease to run out.

        Args:
            job: Its id.
            chunk: Which one.
            claim_id: The dead holder's.
            weight: How much this death speaks against an item that was alone under the holder's mark.
            marked: What the holder had marked, as its parent knows it: its lease may have run out before.
            life: The job's, as the holder had it.
            loading: It was loading the job's model: that is what the death speaks against.

        Returns:
            As `release`.
        """
        answer = self._scripts.run(
            "reclaim_from_dead",
            JobKeys(job).parts("waiting", "leases", "holders", "marks", "suspects", "items"),
            [chunk, claim_id, weight, "load" if loading else ",".join(map(str, marked)), life],
        )
        return _published_at(answer)

    def finalize(self, job: str, who: str, *, lease_s: float = FINALIZER_LEASE_S) -> Finalizing | None:
        """Become the one who writes the job's summary; None if it is not ours."""
        answer = self._scripts.run("finalize", JobKeys(job).parts("finalizer"), [who, lease_s])
        if answer[0] != b"yours":
            return None
        return Finalizing(JobState(text(answer[1])), to_time(answer[2]), int(answer[3]), text(answer[4]))

    def decline(self, job: str, who: str, *, unless_last: bool = False) -> bool:
        """Say that one cannot write the summary; another may at once, the same after a while.

        Args:
            job: Its id.
            who: As `finalize`.
            unless_last: Keep the right where every worker has declined: the job is to end without its summary.

        Returns:
            Whether it is another's now.
        """
        arguments = [who, FINALIZER_PAUSE_S, int(unless_last)]
        answer = self._scripts.run("decline", [*JobKeys(job).parts("finalizer"), keys.WORKERS], arguments)
        return bool(answer != b"last")

    def finish(self, job: str, who: str, mine: Finalizing, *, summary: bool = True) -> bool:
        """Enter the end; False when somebody else did. `summary` says whether `job.json` is in the store."""
        names = JobKeys(job)
        first = ("items", "waiting", "leases", "holders", "attempts", "marks", "suspects")
        others = [part for part in keys.JOB_PARTS if part not in first]
        answer = self._scripts.run(
            "finish",
            [names.hash, keys.ACTIVE, names.part("finalizer"), *map(names.part, (*first, *others))],
            [who, job, mine.end.value, f"{mine.at.timestamp():.3f}", mine.generation, mine.life, int(summary)],
        )
        return bool(answer == b"ended")

    # -- repair --------------------------------------------------------------------------------------------------

    def active(self) -> list[str]:
        """Jobs that have not ended."""
        members = self._scripts.do(lambda client: cast("set[bytes]", client.smembers(keys.ACTIVE)))
        return sorted(text(member) for member in members)

    def forget_active(self, job: str) -> None:
        """Drop a job that is not there from the set of active ones, and what is left beside it."""
        names = JobKeys(job)
        self._scripts.run("forget", [names.hash, keys.ACTIVE, *map(names.part, keys.JOB_PARTS)], [job])

    def forget_expired(self, at_most: int = 100) -> None:
        """Drop the oldest jobs whose lifetime is over from the list of jobs."""

        def forget(client: redis.Redis) -> None:
            for name in cast("list[bytes]", client.zrange(keys.JOBS, 0, at_most - 1)):
                if not client.exists(JobKeys(text(name)).hash):
                    client.zrem(keys.JOBS, name)

        self._scripts.do(forget)

    def look_after(self, at_most: int = 100) -> None:
        """Put the newest jobs that have not ended among the active ones; Redis may have lost that they are."""

        def look(client: redis.Redis) -> None:
            names = [text(name) for name in cast("list[bytes]", client.zrevrange(keys.JOBS, 0, at_most - 1))]
            if not names:
                return
            with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(JobKeys(name).hash, "state")
                states = cast("list[bytes | None]", pipe.execute())
            open_ones = [name for name, state in zip(names, states, strict=True) if state in _NOT_ENDED]
            if open_ones:
                client.sadd(keys.ACTIVE, *open_ones)

        self._scripts.do(look)

    def reconcile(self, job: str, *, at_most: int = 100) -> Reconciled:
        """Find chunks whose lease ran out; they wait again, and need a message each."""
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
        return Reconciled(float(answer[1]), [int(chunk) for chunk in answer[2]])

    def missing_messages(self, queue: str, *, grace_s: float, at_most: int = 1000) -> list[tuple[str, int]]:
        """Find out whether a priority has fewer messages left than chunks that wait.

        Args:
            queue: `high`, `default` or `low`.
            grace_s: How long messages have to be missing all along: until then they may be on their way.
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


def _published_at(answer: list[bytes]) -> float | None:
    return float(answer[1]) if answer[0] == b"released" and answer[2] == b"running" else None
