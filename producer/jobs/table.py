"""The job table in Redis: the truth about every job; Celery's messages only point into it.

Each transition is one Lua script (`lua/`), idempotent, so that a command repeated after a lost reply counts nothing
twice. All times are the server's. Which keys there are: `keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import redis
from pydantic import ValidationError

from producer.jobs import keys
from producer.jobs.errors import JobError, ServiceError, UnknownJob, UsageError
from producer.jobs.keys import JobKeys
from producer.jobs.spec import Chunk, Failure, Item, JobSpec, JobStatus, unpack
from producer.jobs.states import ItemState, JobState
from producer.jobs.status import FIELDS, make_status, to_time

if TYPE_CHECKING:
    from redis.commands.core import Script

    from producer.jobs.settings import Connections

#: A worker not heard of for this long does not count as alive.
WORKER_SILENT_S = 60
#: A problem that is not told again is over, or its worker is.
PROBLEM_LIFETIME_S = 120
#: A producer that sends nothing for this long has died; it need not have sent its job's last image by then.
SILENT_INGEST_S = 3600
BROKEN_OFF = "its submission was broken off; submit it again"
#: How long the one who writes a job's summary may take before another may try.
FINALISER_LEASE_S = 30
#: Facts that `annotate` may note: what the weights were, which layer was meant.
FACTS = ("weights_sha256", "layer", "guided_relus", "worker_versions")
_LIBRARY = ("_now", "_bits", "_end")
_PARTS = ("chunks", "items", "waiting", "leases", "holders", "attempts", "bits", "failures", "reasons")


@dataclass(frozen=True)
class Claim:
    """A chunk in hand: what to do, and the token that proves whose it is."""

    job: str
    chunk: int
    token: int
    attempt: int
    spec: JobSpec
    items: list[Item]
    #: Which items still need work: offsets into `items`.
    pending: list[int]

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
    """Chunks of one job that need a new message."""

    published_at: float
    expired: list[int]
    lost: list[int]


def connect(settings: Connections, *, retries: int | None = None) -> redis.Redis:
    """Connect to Redis and make sure that it answers.

    Raises:
        ServiceError: It does not, or refuses us; names the address, never the password.
    """
    options: dict[str, Any] = {}
    if retries is not None:
        from redis.backoff import ConstantBackoff
        from redis.retry import Retry

        options["retry"] = Retry(ConstantBackoff(0.1), retries)
    client = redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=30,
        socket_connect_timeout=5,
        socket_keepalive=True,
        health_check_interval=25,
        **options,
    )
    try:
        client.ping()
    except redis.exceptions.AuthenticationError:
        raise ServiceError(f"Redis at {settings.redis_address} refuses the password in GRADCAM_REDIS_URL") from None
    except redis.exceptions.ResponseError as error:
        raise ServiceError(f"Redis at {settings.redis_address} refuses GRADCAM_REDIS_URL: {error}") from None
    except redis.exceptions.RedisError as error:
        raise ServiceError(
            f"Redis at {settings.redis_address} cannot be used ({type(error).__name__}): "
            "start it, or correct GRADCAM_REDIS_URL"
        ) from None
    return client


class JobTable:
    """Every read and every transition of jobs; safe to share between threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._scripts: dict[str, Script] = {}

    # -- the producer's side -------------------------------------------------------------------------------------

    def create(self, job: str, spec: JobSpec, *, name: str | None = None, lifetime_s: float) -> bool:
        """Make a job.

        Returns:
            Whether it is new; making the same one again is allowed.

        Raises:
            UsageError: A job of that name exists with another spec.
        """
        answer = self._run(
            "create",
            [JobKeys(job).hash, keys.JOBS, keys.ACTIVE],
            [job, spec.model_dump_json(), name or "", spec.network, spec.queue, lifetime_s],
        )
        if answer == b"differs":
            raise UsageError(
                f"a job named {job} exists with other parameters: choose another --name, or give the same parameters"
            )
        return bool(answer == b"created")

    def add_chunk(self, job: str, chunk: Chunk) -> float | None:
        """Add a chunk of items.

        Returns:
            The time to publish its pointer with, or None when it was there already.

        Raises:
            UsageError: The job holds other items in that place, or takes no more.
        """
        answer = self._run(
            "add_chunk",
            JobKeys(job).parts("chunks", "items", "waiting"),
            [chunk.number, chunk.count, chunk.digest, chunk.payload],
        )
        match _text(answer[0]):
            case "added":
                return float(answer[1])
            case "same":
                return None
            case "differs":
                raise UsageError(f"job {job} was made from another source: choose another --name for this one")
            case "gone":
                raise UnknownJob(_no_such(job))
            case state:
                raise UsageError(f"job {job} takes no more images: it is {state}")

    def close(self, job: str, *, chunks: int, items: int) -> None:
        """Say that no more items come, and check that all that were sent are there.

        Raises:
            ServiceError: Redis lost some of them; submitting again under the same name sends what is missing.
        """
        answer = self._run("close", JobKeys(job).parts("chunks"), [chunks, items])
        match _text(answer[0]):
            case "gone":
                raise UnknownJob(_no_such(job))
            case "missing":
                raise ServiceError(
                    f"Redis holds {_text(answer[2])} of the {items} images sent for job {job}: "
                    f"submit the same again with --name {job} to send what is missing"
                )

    def fail(self, job: str, sentence: str) -> None:
        """Bring a job to its end because of something that all its images share."""
        self._run("fail", [JobKeys(job).hash], [sentence])

    # -- the worker's side ---------------------------------------------------------------------------------------

    def annotate(self, job: str, **facts: str) -> None:
        """Keep facts that only a worker can know with a job that runs."""
        self._run("annotate", [JobKeys(job).hash], [part for pair in facts.items() for part in pair])

    def facts(self, job: str) -> dict[str, str]:
        """What workers noted with `annotate`."""
        values = cast("list[bytes | None]", self._redis.hmget(JobKeys(job).hash, FACTS))
        return {name: _text(value) for name, value in zip(FACTS, values, strict=True) if value is not None}

    def claim(self, job: str, chunk: int, spec: JobSpec, *, claim_id: str, lease_s: float) -> Claim | None:
        """Take a chunk for a time; None when there is nothing to do for this pointer.

        The same `claim_id` asking twice gets the same lease: its first reply may have been lost.
        """
        answer = self._run(
            "claim",
            JobKeys(job).parts("chunks", "items", "waiting", "leases", "holders", "attempts", "bits"),
            [chunk, claim_id, lease_s, spec.chunk_size],
        )
        if answer[0] != b"claimed":
            return None
        _, token, attempt, payload, states = answer
        pending = [offset for offset, state in enumerate(states) if state == ItemState.PENDING]
        return Claim(job, chunk, token, attempt, spec, unpack(payload), pending)

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        """Keep the lease after progress; False makes the holder stop."""
        answer = self._run("renew", JobKeys(claim.job).parts("leases", "holders"), [claim.chunk, claim.token, lease_s])
        return bool(answer == b"renewed")

    def commit(
        self, claim: Claim, *, done: Sequence[int], failed: Sequence[Failure], lease_s: float
    ) -> Committed | None:
        """Record the ends of items; None when the job has ended and takes no more.

        Args:
            claim: The chunk in hand, or once in hand: an old token may still record `done`.
            done: Offsets of items whose pictures and manifest lie in the object store.
            failed: Items with their own fault.
            lease_s: The lease that goes on if the chunk is not complete.
        """
        first = claim.index(0)
        arguments: list[Any] = [claim.chunk, claim.token, lease_s, claim.spec.chunk_size, len(done), *done]
        for failure in failed:
            arguments += [failure.index - first, failure.reason, failure.model_dump_json(exclude_none=True)]
        answer = self._run("commit", JobKeys(claim.job).parts(*_PARTS), arguments)
        if answer[0] != b"committed":
            return None
        return Committed(answer[1], answer[2], bool(answer[3]), JobState(_text(answer[4])))

    def release(self, claim: Claim) -> float | None:
        """Give the chunk back unfinished; the time to publish its pointer with, or None if it was not ours any more."""
        answer = self._run(
            "release",
            JobKeys(claim.job).parts("waiting", "leases", "holders", "attempts"),
            [claim.chunk, claim.token],
        )
        return float(answer[1]) if answer[0] == b"released" else None

    def finalise(self, job: str, who: str) -> tuple[JobState, datetime] | None:
        """Become the one who writes the job's summary: the end it will enter and the time; None if it is not ours."""
        answer = self._run("finalise", JobKeys(job).parts("finaliser"), [who, FINALISER_LEASE_S])
        if answer[0] != b"yours":
            return None
        return JobState(_text(answer[1])), to_time(answer[2])

    def finish(self, job: str, who: str, end: JobState, finished_at: datetime) -> bool:
        """Enter the end; False when somebody else did."""
        names = JobKeys(job)
        answer = self._run(
            "finish",
            [names.hash, keys.ACTIVE, names.part("finaliser"), *(names.part(part) for part in _PARTS)],
            [who, job, end.value, f"{finished_at.timestamp():.3f}"],
        )
        return bool(answer == b"ended")

    # -- repair --------------------------------------------------------------------------------------------------

    def active(self) -> list[str]:
        """Jobs that have not ended."""
        members = cast("set[bytes]", self._redis.smembers(keys.ACTIVE))
        return sorted(_text(member) for member in members)

    def forget_active(self, job: str) -> None:
        """Drop a job that is not there from the set of active ones."""
        self._redis.srem(keys.ACTIVE, job)

    def reconcile(self, job: str, *, lost_before: float, at_most: int = 100) -> tuple[str, Reconciled]:
        """Find chunks whose lease ran out or that wait since before `lost_before`, and give them a new publish time."""
        answer = self._run(
            "reconcile",
            JobKeys(job).parts("waiting", "leases", "holders"),
            [f"{lost_before:.3f}", at_most, SILENT_INGEST_S, BROKEN_OFF],
        )
        state = _text(answer[0])
        if state == "gone":
            return state, Reconciled(0, [], [])
        return state, Reconciled(float(answer[1]), [int(c) for c in answer[2]], [int(c) for c in answer[3]])

    def lead_reconciler(self, who: str, for_s: float) -> bool:
        """Whether this process is the one that reconciles for the next interval."""
        return bool(self._redis.set(keys.RECONCILER, who, nx=True, px=max(1, int(for_s * 1000))))

    def beat(self, worker: str) -> None:
        """Say that a worker is alive."""
        self._redis.zadd(keys.WORKERS, {worker: self.now()})

    def retire(self, worker: str) -> None:
        """Say that a worker is gone."""
        self._redis.zrem(keys.WORKERS, worker)
        self._redis.hdel(keys.PROBLEMS, worker)

    def complain(self, worker: str, sentence: str) -> None:
        """Say what keeps a worker from working; whoever looks at a job sees it."""
        self._redis.hset(keys.PROBLEMS, worker, sentence)
        self._redis.expire(keys.PROBLEMS, PROBLEM_LIFETIME_S)

    def recovered(self, worker: str) -> None:
        """Say that nothing keeps a worker from working any more."""
        self._redis.hdel(keys.PROBLEMS, worker)

    def now(self) -> float:
        """The server's time in seconds since 1970."""
        seconds, micros = self._redis.time()
        return seconds + micros / 1e6

    # -- reading -------------------------------------------------------------------------------------------------

    def spec(self, job: str) -> tuple[JobSpec, JobState] | None:
        """What a job computes and where it stands; None if there is no such job.

        Raises:
            JobError: Another version of this program wrote it.
        """
        text, state = cast("list[bytes | None]", self._redis.hmget(JobKeys(job).hash, ("spec", "state")))
        if text is None or state is None:
            return None
        try:
            return JobSpec.model_validate_json(text), JobState(_text(state))
        except ValidationError:
            raise JobError(f"job {job} was written by another version of gradcam-queue: update this one") from None

    def status(self, job: str) -> JobStatus:
        """Everything there is to know about a job now, at a cost that does not grow with it.

        Raises:
            UnknownJob: There is no such job.
        """
        names = [*JobKeys(job).parts("reasons"), keys.WORKERS, keys.PROBLEMS]
        # A missing last element is how Lua says nil.
        values, reasons, workers, *problem = self._run("status", names, [WORKER_SILENT_S, *FIELDS])
        fields = {name: _text(value) for name, value in zip(FIELDS, values, strict=True) if value is not None}
        if "state" not in fields:
            raise UnknownJob(_no_such(job))
        counts = {_text(k): int(v) for k, v in zip(reasons[::2], reasons[1::2], strict=True)}
        return make_status(job, fields, counts, workers, _text(problem[0]) if problem and problem[0] else None)

    def jobs(self, *, limit: int, offset: int = 0) -> list[JobStatus]:
        """Jobs, newest first; those whose lifetime is over drop out."""
        names = cast("list[bytes]", self._redis.zrevrange(keys.JOBS, offset, offset + limit - 1))
        found = []
        for name in names:
            try:
                found.append(self.status(_text(name)))
            except UnknownJob:
                self._redis.zrem(keys.JOBS, name)
        return found

    def failures(self, job: str) -> Iterator[Failure]:
        """The failed images of a job, in no particular order.

        Raises:
            UnknownJob: There is no such job.
        """
        names = JobKeys(job)
        if not self._redis.exists(names.hash):
            raise UnknownJob(_no_such(job))
        for _, text in self._redis.hscan_iter(names.part("failures"), count=500):
            yield Failure.model_validate_json(text)

    def _run(self, name: str, names: list[str], arguments: Sequence[Any]) -> Any:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._redis.register_script(_source(name))
        return script(keys=names, args=list(arguments))


def _source(name: str) -> str:
    lua = files("producer.jobs.lua")
    return "\n".join((lua / f"{part}.lua").read_text() for part in (*_LIBRARY, name))


def _text(value: bytes) -> str:
    return value.decode()


def _no_such(job: str) -> str:
    return f"there is no job {job[:80]!r} (or its lifetime is over): `gradcam list` shows those there are"
