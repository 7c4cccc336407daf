"""Which workers there are, what keeps them from working, and which of them looks for lost work now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, cast

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from producer.jobs.model import keys, release
from producer.jobs.model.errors import ServiceError
from producer.jobs.model.status import Wait
from producer.jobs.model.text import SENTENCE_CHARS, shown
from producer.jobs.model.worker_record import MAX_RECORD_BYTES, WorkerFacts, WorkerRecord

if TYPE_CHECKING:
    from producer.jobs.table.redis_scripts import Scripts

#: A worker not heard of for this long does not count as alive.
WORKER_SILENT_S = 60
_FORGOTTEN_S = 86_400
#: No time in seconds since 1970 is later than the end of the year 9999.
_MOST_S = 253402300799.0
#: No batch and no speed is greater.
_MOST = 1e6
#: A status names so many things that are waited for at most.
MOST_WAITS = 5
SPEEDS_LIFETIME_S = 30 * 86_400
#: Asked to leave, and not gone by then: nobody by that name is there.
_DRAIN_LIFETIME_S = 3600
#: So many workers are listed at most.
_MOST_WORKERS = 10_000
#: Of what somebody else wrote so much is shown.
_LONGEST_WORDS = 500


class _Told(BaseModel):
    """What a worker reports of its waiting."""

    model_config = ConfigDict(frozen=True)

    what: str
    #: By Redis' clock, in seconds since 1970: when the wait began, and when it was told last.
    since: Annotated[float, Field(ge=0, le=_MOST_S)]
    at: Annotated[float, Field(ge=0, le=_MOST_S)]


def _silent_for(told: bytes, now: float) -> float | None:
    """For how many seconds nothing was told; None where this version cannot read what was."""
    try:
        at = float(told.partition(b" ")[0])
    except ValueError:
        return None
    return now - at if 0 <= at <= _MOST_S else None


def told_lately(line: bytes, now: float) -> _Told | None:
    """What a worker waits for, as `waits_for` stored it; None where nobody can read it, or it died with its wait."""
    try:
        told = _Told.model_validate_json(line)
    except ValidationError:  # of another version
        return None
    return told if now - told.at < WORKER_SILENT_S else None


def longest_waits(lines: Iterable[bytes], now: float) -> tuple[Wait, ...]:
    """What workers wait for, as `waits_for` stored it, the longest wait first."""
    longest: dict[str, list[float]] = {}
    for line in lines:
        if told := told_lately(line, now):
            longest.setdefault(told.what, []).append(max(now - told.since, 0.0))
    waits = [Wait(what=what, workers=len(ages), longest_s=round(max(ages), 1)) for what, ages in longest.items()]
    return tuple(sorted(waits, key=lambda wait: -wait.longest_s)[:MOST_WAITS])


def _alive(told: bytes, now: float) -> bool:
    silent_s = _silent_for(told, now)
    return silent_s is not None and silent_s < WORKER_SILENT_S


def _silent(told: bytes, now: float) -> bool:
    # What a newer version tells otherwise is not ours to remove.
    silent_s = _silent_for(told, now)
    return silent_s is not None and silent_s >= WORKER_SILENT_S


def _word(told: bytes) -> str:
    return told.decode(errors="replace")


@contextmanager
def _ours(*names: str) -> Iterator[None]:
    """Say of keys that all jobs share when one of them is of another type. Raises ServiceError."""
    try:
        yield
    except redis.exceptions.ResponseError as error:
        if "WRONGTYPE" not in str(error):  # behind the command, where it was one of several
            raise
        raise ServiceError(
            f"Redis holds something under {' or '.join(names)} that is not ours: rename or delete that key, it is made "
            "again"
        ) from None


def _facts(record: bytes | None) -> WorkerFacts | None:
    """What a worker tells of itself; None where it tells nothing, or what this version cannot read."""
    if record is None or len(record) > MAX_RECORD_BYTES:
        return None
    try:
        return WorkerFacts.model_validate_json(record)
    except ValidationError:
        return None


def _launcher_of(record: bytes | None) -> str | None:
    facts = _facts(record)
    return facts.launcher if facts else None


def _record(
    name: bytes,
    silent_s: float,
    record: bytes | None,
    queues: bytes | None,
    problem: bytes | None,
    leaves: bool,
    wished: set[str],
) -> WorkerRecord:
    facts = _facts(record)
    return WorkerRecord(
        name=_word(name),
        known=facts is not None,
        **(facts.model_dump() if facts else {}),
        queues=_word(queues or b"")[:_LONGEST_WORDS],
        problem=None if problem is None else _word(problem)[:_LONGEST_WORDS],
        draining=leaves or bool(facts and facts.launcher and facts.launcher in wished),
        silent_s=round(silent_s, 1),
    )


class WorkerRegistry:
    """The workers, as they report themselves."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def heartbeat(
        self,
        worker: str,
        queues: Sequence[str] = (),
        networks: Sequence[str] = (),
        warnings: Sequence[str] = (),
        facts: WorkerFacts | None = None,
    ) -> None:
        """Report that a worker is alive, its release, the priorities that it reads, and the networks registered there.

        It reads all priorities where none is named. Warnings say what its settings leave open; facts, what it does.

        Raises:
            ServiceError: A key that all workers share is of another type.
        """
        now = self.now()

        def heartbeat(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipe:
                pipe.zadd(keys.WORKERS, {worker: now})
                if queues:
                    pipe.hset(keys.QUEUES, worker, ",".join(queues))
                if facts is not None:
                    pipe.hset(keys.RECORDS, worker, facts.model_dump_json(exclude_none=True))
                    pipe.expire(keys.RECORDS, keys.PROBLEM_LIFETIME_S)
                # One worker of each release, and of each network, will do: there are few of them, and many workers.
                pipe.hset(keys.RELEASES, release.own(), f"{now:.3f} {worker}")
                if networks:
                    pipe.hset(keys.NETWORKS, mapping=dict.fromkeys(networks, f"{now:.3f} {worker}"))
                if warnings:
                    pipe.hset(keys.WARNINGS, mapping=dict.fromkeys(warnings, f"{now:.3f} {worker}"))
                told_of = (keys.RELEASES, keys.NETWORKS, keys.WARNINGS)
                for key in told_of:
                    pipe.hgetall(key)
                answers = cast("list[dict[bytes, bytes]]", pipe.execute())[-len(told_of) :]
            for key, found in zip(told_of, answers, strict=True):
                if silent := [name for name, told in found.items() if _silent(told, now)]:
                    client.hdel(key, *silent)

        with _ours(keys.WORKERS, keys.QUEUES, keys.RELEASES, keys.NETWORKS, keys.WARNINGS, keys.RECORDS):
            self._scripts.do(heartbeat)

    def releases(self, now: float) -> dict[str, str]:
        """The releases of the workers that are alive, each with the name of one of them."""
        return self._told_by(keys.RELEASES, now)

    def warnings(self, now: float) -> dict[str, str]:
        """What the settings of workers that are alive leave open, each with the name of one of them."""
        there = self._alive(now)
        return {words: worker for words, worker in self._told_by(keys.WARNINGS, now).items() if worker in there}

    def problems(self, now: float) -> list[str]:
        """What keeps workers that are alive from working, a sentence each."""
        there = self._alive(now)
        with _ours(keys.PROBLEMS):
            found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(keys.PROBLEMS)))
        return [_word(sentence) for worker, sentence in found.items() if _word(worker) in there]

    def _alive(self, now: float) -> set[str]:
        with _ours(keys.WORKERS):
            found = self._scripts.do(
                lambda client: cast("list[bytes]", client.zrangebyscore(keys.WORKERS, now - WORKER_SILENT_S, "+inf"))
            )
        return set(map(_word, found))

    def _told_by(self, key: str, now: float) -> dict[str, str]:
        with _ours(key):
            found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(key)))
        return {_word(name): _word(told).partition(" ")[2] for name, told in found.items() if _alive(told, now)}

    def networks(self, *, patience_s: float | None = None) -> set[str]:
        """The networks that are registered with workers that are alive."""

        def networks(client: redis.Redis) -> set[str]:
            seconds, _ = client.time()
            found = cast("dict[bytes, bytes]", client.hgetall(keys.NETWORKS))
            return {_word(name) for name, told in found.items() if _alive(told, seconds)}

        with _ours(keys.NETWORKS):
            return self._scripts.do(networks, patience_s=patience_s)

    def deregister(self, worker: str) -> None:
        """Remove a worker that ends; it ends also when Redis is away."""
        with suppress(ServiceError):
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """Remove a worker that has ended. Raises ServiceError: Redis is away, or a key is of another type."""
        told = (keys.QUEUES, keys.PROBLEMS, keys.WAITS, keys.RECORDS, keys.DRAINS)

        def forget(client: redis.Redis) -> None:
            client.zrem(keys.WORKERS, worker)
            for key in told:
                client.hdel(key, worker)

        with _ours(keys.WORKERS, *told):
            self._scripts.do(forget, patience_s=1.0)

    def workers(self) -> list[WorkerRecord]:
        """The workers that are alive, by their names; what one tells that cannot be read is left out of its record."""
        now = self.now()

        def look(client: redis.Redis) -> list[WorkerRecord]:
            since = now - WORKER_SILENT_S
            found = cast(
                "list[tuple[bytes, float]]",
                client.zrangebyscore(keys.WORKERS, since, "+inf", start=0, num=_MOST_WORKERS, withscores=True),
            )
            if not found:
                return []
            with client.pipeline(transaction=False) as pipe:
                for key in (keys.RECORDS, keys.QUEUES, keys.PROBLEMS, keys.DRAINS):
                    pipe.hmget(key, [name for name, _ in found])
                records, queues, problems, drains = cast("list[list[bytes | None]]", pipe.execute())
                launchers = {_launcher_of(record) for record in records}
                wished = {name for name in launchers if name and client.hexists(keys.DRAINS, name)}
            rows = zip(found, records, queues, problems, drains, strict=True)
            return [
                _record(name, max(now - at, 0.0), record, reads, problem, drain is not None, wished)
                for (name, at), record, reads, problem, drain in rows
            ]

        with _ours(keys.WORKERS, keys.RECORDS, keys.QUEUES, keys.PROBLEMS, keys.DRAINS):
            return sorted(self._scripts.do(look), key=lambda record: record.name)

    def drain(self, name: str) -> None:
        """Ask a worker process, or a launcher with all of its processes, to finish and leave."""
        now = self.now()

        def ask(client: redis.Redis) -> None:
            client.hset(keys.DRAINS, name, f"{now:.3f}")
            client.expire(keys.DRAINS, _DRAIN_LIFETIME_S)

        with _ours(keys.DRAINS):
            self._scripts.do(ask)

    def asked_to_leave(self, names: Sequence[str]) -> set[str]:
        """Which of these names of a process and its launcher were asked to finish and leave."""
        with _ours(keys.DRAINS):
            found = self._scripts.do(lambda client: cast("list[bytes | None]", client.hmget(keys.DRAINS, list(names))))
        return {name for name, wish in zip(names, found, strict=True) if wish is not None}

    def forget_silent(self) -> None:
        """Remove workers without a heartbeat for a day, and sooner what nobody tells any more.

        The lifetime of a hash is that of all in it: one worker that goes on telling keeps what the dead have told.
        """
        now = self.now()

        def forget(client: redis.Redis) -> None:
            names = cast("list[bytes]", client.zrangebyscore(keys.WORKERS, "-inf", now - _FORGOTTEN_S))
            if names:
                client.zrem(keys.WORKERS, *names)
                client.hdel(keys.QUEUES, *names)
            there = set(client.zrangebyscore(keys.WORKERS, now - keys.PROBLEM_LIFETIME_S, "+inf"))
            for key in (keys.RECORDS, keys.PROBLEMS, keys.WAITS):
                if gone := set(client.hkeys(key)) - there:
                    client.hdel(key, *gone)
            wishes = cast("dict[bytes, bytes]", client.hgetall(keys.DRAINS))
            if late := [name for name, at in wishes.items() if (_silent_for(at, now) or 0) > _DRAIN_LIFETIME_S]:
                client.hdel(keys.DRAINS, *late)

        with _ours(keys.WORKERS, keys.QUEUES, keys.RECORDS, keys.PROBLEMS, keys.WAITS, keys.DRAINS):
            self._scripts.do(forget)

    def report_problem(self, worker: str, sentence: str) -> None:
        """Report what keeps a worker from working; the status of a job shows it."""
        self._scripts.do(lambda client: client.hset(keys.PROBLEMS, worker, shown(sentence, SENTENCE_CHARS)))
        self._scripts.do(lambda client: client.expire(keys.PROBLEMS, keys.PROBLEM_LIFETIME_S))

    def recovered(self, worker: str) -> None:
        """Report that a worker can work again."""
        self._scripts.do(lambda client: client.hdel(keys.PROBLEMS, worker))

    def waits_for(self, worker: str, what: str, for_s: float) -> None:
        """Report what a worker waits for, and for how long; call it again while the wait lasts."""
        now = self.now()
        told = _Told(what=shown(what), since=now - for_s, at=now)

        def tell(client: redis.Redis) -> None:
            client.hset(keys.WAITS, worker, told.model_dump_json())
            client.expire(keys.WAITS, keys.PROBLEM_LIFETIME_S)

        self._scripts.do(tell, patience_s=1.0)

    def waits_no_more(self, worker: str) -> None:
        """Withdraw the report of `waits_for`."""
        self._scripts.do(lambda client: client.hdel(keys.WAITS, worker), patience_s=1.0)

    def waits(self, now: float) -> tuple[Wait, ...]:
        """What workers wait for, the longest wait first."""
        with _ours(keys.WAITS):
            found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(keys.WAITS)))
        return longest_waits(found.values(), now)

    def try_lead(self, worker: str, for_s: float) -> bool:
        """Whether this worker is the one that looks for lost work for so long."""
        for_ms = max(1, int(for_s * 1000))
        return bool(self._scripts.do(lambda client: client.set(keys.RECONCILER, worker, nx=True, px=for_ms)))

    def step_down(self, worker: str) -> None:
        """Let another worker look for lost work, if this one is the leader."""

        def step_down(client: redis.Redis) -> None:
            if client.get(keys.RECONCILER) == worker.encode():
                client.delete(keys.RECONCILER)

        self._scripts.do(step_down)

    def note_speed(self, network: str, images_per_s: float, *, processes: int = 1) -> None:
        """Store the speed of one process with a network, and that of its device.

        Submissions choose the chunk size by the one; by the other a scaler counts, also when no worker is left.

        Args:
            network: As jobs name it.
            images_per_s: Of this process.
            processes: How many share its device, this one included; each of them is as fast.
        """

        def note(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipe:
                for key, speed in ((keys.SPEEDS, images_per_s), (keys.DEVICE_SPEEDS, images_per_s * processes)):
                    pipe.hset(key, network, f"{speed:.2f}")
                    pipe.expire(key, SPEEDS_LIFETIME_S)
                pipe.execute()

        self._scripts.do(note)

    def speed(self, network: str) -> float | None:
        """How many images a second one process explains with a network; None where nobody did lately."""
        return self._measured(keys.SPEEDS, network)

    def note_batch_size(self, batch_key: str, size: int) -> None:
        """Store the best batch size for a kind of work; the next process begins with it."""

        def note(client: redis.Redis) -> None:
            client.hset(keys.BATCH_SIZES, batch_key, size)
            client.expire(keys.BATCH_SIZES, SPEEDS_LIFETIME_S)

        with suppress(ServiceError):  # the next process finds it again
            self._scripts.do(note, patience_s=1.0)

    def batch_size(self, batch_key: str) -> int | None:
        """The best batch size for a kind of work; None where nobody measured it lately."""
        found = self._measured(keys.BATCH_SIZES, batch_key)
        return int(found) if found is not None and found >= 1 else None

    def _measured(self, key: str, name: str) -> float | None:
        """What was measured, at least 1/100; None where it was not, or cannot be read: it is measured anew."""
        with suppress(ValueError, redis.exceptions.ResponseError):
            found = self._scripts.do(lambda client: cast("bytes | None", client.hget(key, name)))
            number = float(found or 0)
            return number if 0.01 <= number <= _MOST else None  # noqa: PLR2004 - as `note_speed` rounds
        return None

    def now(self) -> float:
        """The server's time in seconds since 1970."""
        seconds, micros = self._scripts.do(lambda client: client.time())
        return seconds + micros / 1e6
