"""The job table in Redis: the truth about every job; Celery's messages only point into it.

Each transition is one Lua script (`lua/`), idempotent, so that a command repeated after a lost reply counts nothing
twice. All times are the server's. Which keys there are: `keys.py`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import redis

from producer.jobs.model import keys
from producer.jobs.model.errors import JobEnded, OtherVersion, UnknownJob, UsageError, no_such
from producer.jobs.model.items import Chunk, decompress_items
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import JobState
from producer.jobs.model.status import to_time
from producer.jobs.model.text import SENTENCE_CHARS, shown
from producer.jobs.table.claims import Claim, Committed, CreatedJob, Finalizing, OnlyRefusedJobs, read_claim
from producer.jobs.table.overview import OverviewReader
from producer.jobs.table.queries import Queries
from producer.jobs.table.recovery import Recovery
from producer.jobs.table.redis_scripts import PATIENCE_S, Scripts, text
from producer.jobs.table.redis_server import Server
from producer.jobs.table.troubles import Troubles
from producer.jobs.table.user_actions import UserActions, refusal
from producer.jobs.table.workers import WorkerRegistry

#: How long the one who writes a job's summary may take before another may try.
FINALIZER_LEASE_S = 30.0
#: How long one who could not write it leaves it to others.
FINALIZER_PAUSE_S = 10.0


class JobTable:
    """The transitions that submissions and workers make, and the table's other parts; safe to share between threads.

    Every method waits for a Redis that is away, starting or full, up to `patience_s` seconds, and then raises
    ServiceError; whatever it sent may be sent again.

    Args:
        client: A connection.
        patience_s: How long a Redis that is away, starting or full is waited for.
    """

    def __init__(self, client: redis.Redis, *, patience_s: float = PATIENCE_S) -> None:
        self.redis = client
        self._scripts = Scripts(client, patience_s=patience_s)
        #: What can be asked of Redis itself.
        self.server = Server(self._scripts)
        #: The workers.
        self.registry = WorkerRegistry(self._scripts)
        #: What workers report of jobs that they cannot do.
        self.troubles = Troubles(self._scripts)
        #: Every read of jobs.
        self.queries = Queries(self._scripts, self.server, self.registry)
        #: All jobs and workers at once.
        self.overview = OverviewReader(self._scripts, self.server)
        #: What a user does with a job.
        self.actions = UserActions(self._scripts)
        #: What brings lost work back.
        self.recovery = Recovery(self._scripts)

    # -- the producer's side -------------------------------------------------------------------------------------

    def create(
        self, job: str, spec: JobSpec, *, name: str | None = None, lifetime_s: float, traceparent: str = ""
    ) -> CreatedJob:
        """Make a job; making the same one again is allowed, and changes nothing of it.

        Args:
            job: Its id.
            spec: What it computes.
            name: As its owner calls it.
            lifetime_s: How long it stays in Redis after its end.
            traceparent: The address of its submission's span; empty where that is not traced.

        Raises:
            UsageError: A job of that name exists with another spec, or is being repaired or deleted.
        """
        answer = self._create(job, spec, spec.model_dump_json(), name, lifetime_s, traceparent)
        if answer[0] == b"differs":
            found = self.queries.spec(job)
            written = self.queries.written_spec(job)
            if found and found[0] == spec and written is not None:
                # The same in other words: an earlier release wrote it, which had not all parameters.
                answer = self._create(job, spec, written, name, lifetime_s, traceparent)
        if answer[0] == b"differs":
            differing = found[0].differing(spec) if found else "it is gone by now"
            raise UsageError(
                f"a job named {job} exists with other parameters ({differing}): choose another --name, or give the "
                "same parameters"
            )
        if answer[0] not in {b"created", b"same"}:
            raise UsageError(refusal(job, text(answer[0])))
        return CreatedJob(answer[0] == b"created", text(answer[1]), int(answer[2]))

    def _create(
        self, job: str, spec: JobSpec, written: str, name: str | None, lifetime_s: float, traceparent: str
    ) -> Any:
        return self._scripts.run(
            "create",
            [JobKeys(job).hash, keys.JOBS, keys.ACTIVE, keys.round_robin(spec.queue)],
            [
                *(job, written, name or "", spec.network, spec.queue, lifetime_s, spec.chunk_size),
                *(secrets.token_hex(8), traceparent),
            ],
        )

    def discard(self, job: str, spec: JobSpec, life: str) -> None:
        """Remove a job that was just made and of which nothing was sent."""
        names = [JobKeys(job).hash, keys.JOBS, keys.ACTIVE, keys.round_robin(spec.queue)]
        self._scripts.run("discard", names, [job, life])

    def adopt(self, job: str, life: str, since: int) -> None:
        """Set the first token whose records in the store belong to this job: an earlier life in Redis wrote some."""
        self._scripts.run("adopt", [JobKeys(job).hash], [life, since])

    def add_chunk(
        self, job: str, chunk: Chunk, *, life: str = "", claim_id: str = "", lease_s: float = 0
    ) -> float | None:
        """Add a chunk of items.

        Args:
            job: Its id.
            chunk: The items.
            life: As `create` gave it; empty for any.
            claim_id: Who holds it from the first moment on, so that no worker takes it; empty where it is to wait.
            lease_s: For how long.

        Returns:
            The time to publish its pointer with, or None when it was there already.

        Raises:
            UnknownJob: It is not there, or another of its name is.
            UsageError: The job holds other items in that place.
            JobEnded: It takes no more.
        """
        answer = self._scripts.run(
            "add_chunk",
            JobKeys(job).parts("chunks", "items", "waiting", "leases", "holders", "attempts"),
            [chunk.number, chunk.count, chunk.digest, chunk.payload, life, claim_id, lease_s],
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
        """Close the ingest, unless some of the items that were sent are missing.

        Returns:
            How many images Redis holds; `items` when the ingest is closed. Redis may have lost its last second.

        Raises:
            UnknownJob: It has lost the whole job.
        """
        answer = self._scripts.run("close", JobKeys(job).parts("chunks"), [chunks, items, life])
        if answer[0] == b"gone":
            raise UnknownJob(no_such(job))
        return int(answer[2]) if answer[0] == b"missing" else items

    def fail(self, job: str, sentence: str, *, claim: Claim | None = None, life: str | None = None) -> None:
        """End a job because of a fault that all its images share.

        Args:
            job: Its id.
            sentence: Why.
            claim: Of a worker that says so: it counts only while that holds the chunk.
            life: Of a producer that says so: it counts only for that life of the job.
        """
        whose: list[Any] = [] if life is None else [life]
        if claim is not None:
            whose = [claim.chunk, claim.token, claim.life, claim.epoch]
        self._scripts.run("fail", JobKeys(job).parts("holders"), [shown(sentence, SENTENCE_CHARS), *whose])

    # -- the worker's side ---------------------------------------------------------------------------------------

    def annotate(self, job: str, life: str = "", **facts: str) -> None:
        """Store facts with a running job that only a worker can know."""
        self._scripts.run("annotate", [JobKeys(job).hash], [life, *(part for pair in facts.items() for part in pair)])

    def pin_weights(self, claim: Claim, sha256: str) -> str | None:
        """Say which weights a job is explained by, unless a worker has said so before.

        Args:
            claim: A chunk of it; it counts for that life of the job.
            sha256: Of the weights, in hexadecimal.

        Returns:
            The SHA-256 of those that it is explained by; None where it goes no further.
        """
        answer = self._scripts.run("pin_weights", [JobKeys(claim.job).hash], [claim.life, sha256])
        return text(answer[1]) if answer[0] == b"pinned" else None

    def pop_message(self, queues: Sequence[str]) -> tuple[str, bytes] | None:
        """Read the next message of the first queue that has one, as it lies there; None when all are empty."""
        answer = self._scripts.run("pop_message", [keys.QUEUE_PREFIX + queue for queue in queues], [])
        return (queues[int(answer[0]) - 1], answer[1]) if answer else None

    def next_chunk(
        self, queue: str, job: str, chunk: int, *, exact: bool, worker: str = "", passed_over: Sequence[str] = ()
    ) -> tuple[str, int] | OnlyRefusedJobs | None:
        """Pick the chunk that a message lets a worker take: round robin over the jobs of its priority.

        Args:
            queue: The priority.
            job: What the message says.
            chunk: What the message says.
            exact: Take the chunk of the message, if it waits and no worker has refused its job.
            worker: Who asks; jobs that it has refused (`troubles`) are passed over.
            passed_over: Other jobs that are.

        Returns:
            Job and chunk; OnlyRefusedJobs when only jobs wait that are passed over; None when nothing waits.
        """
        arguments = [job, chunk, int(exact), worker, *passed_over]
        answer = self._scripts.run("next_chunk", [keys.round_robin(queue)], arguments)
        if len(answer) == 1:
            return OnlyRefusedJobs(text(answer[0]))
        return (text(answer[0]), int(answer[1])) if answer else None

    def claim(
        self, job: str, chunk: int, spec: JobSpec, *, claim_id: str, lease_s: float, producer: bool = False
    ) -> Claim | None:
        """Take a chunk for the time of a lease; None when this pointer leaves nothing to do.

        The same `claim_id` asking twice gets the same lease: its first reply may have been lost.

        Args:
            job: Its id.
            chunk: Which one.
            spec: What the job computes.
            claim_id: Who asks.
            lease_s: The lease.
            producer: It is going to enter what the store has of the chunk: a paused job gives it, too.
        """
        answer = self._scripts.run(
            "claim",
            JobKeys(job).parts(
                "chunks", "items", "waiting", "leases", "holders", "attempts", "bits", "marks", "suspects"
            ),
            [chunk, claim_id, lease_s, int(producer)],
        )
        if answer[0] != b"claimed":
            return None
        try:
            claim, payload = read_claim(job, chunk, spec, answer), answer[3]
        except ValueError:
            raise OtherVersion(
                f"job {job} was written by another version of gradcam-queue, or by somebody else"
            ) from None
        try:
            items = decompress_items(payload)
        except ValueError:  # pydantic's among them
            items = {}
        if not items.keys() >= set(claim.pending):
            self.release(claim)
            raise OtherVersion(f"the images of job {job} were written by another version of gradcam-queue")
        return replace(claim, items=items)

    def renew(
        self, claim: Claim, *, lease_s: float, marked: Sequence[int] | None = None, loading: bool = False
    ) -> bool:
        """Keep the lease after progress; False makes the holder stop.

        Args:
            claim: The chunk.
            lease_s: The lease from now on.
            marked: Offsets of the items that are about to be decoded or computed. They are suspects if this process
                dies. When absent, the marks stay as they were.
            loading: The model is about to be loaded: the job is the suspect.
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
            claim: The chunk. An old token of this generation may still record `done`.
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
        """Take a chunk back from a dead holder, so that nobody waits for the end of its lease.

        Args:
            job: Its id.
            chunk: Which one.
            claim_id: The dead holder's.
            weight: How much this death counts against an item that was alone under the holder's mark.
            marked: What the holder had marked, as its parent knows it; its lease may be over.
            life: The job's, as the holder had it.
            loading: It was loading the job's model: the death counts against the model.

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
        """Get the right to write the job's summary; None when another one has it."""
        answer = self._scripts.run("finalize", JobKeys(job).parts("finalizer"), [who, lease_s])
        if answer[0] != b"yours":
            return None
        return Finalizing(JobState(text(answer[1])), to_time(answer[2]), int(answer[3]), text(answer[4]))

    def decline(self, job: str, who: str, *, unless_last: bool = False) -> bool:
        """Give up writing the summary. Another one may try at once, the same one after a while.

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
        """End the job; False when another one did. `summary` says whether `job.json` is in the store."""
        names = JobKeys(job)
        first = ("items", "waiting", "leases", "holders", "attempts", "marks", "suspects")
        others = [part for part in keys.JOB_PARTS if part not in first]
        answer = self._scripts.run(
            "finish",
            [names.hash, keys.ACTIVE, names.part("finalizer"), *map(names.part, (*first, *others))],
            [who, job, mine.end.value, f"{mine.at.timestamp():.3f}", mine.generation, mine.life, int(summary)],
        )
        return bool(answer == b"ended")


def _published_at(answer: list[bytes]) -> float | None:
    return float(answer[1]) if answer[0] == b"released" and answer[2] == b"running" else None
