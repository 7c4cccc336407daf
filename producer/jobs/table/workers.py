"""Which workers there are, what keeps them from working, and which of them looks for lost work now."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from producer.jobs.model import keys, release
from producer.jobs.model.errors import ServiceError
from producer.jobs.model.status import Wait
from producer.jobs.table.redis_scripts import text

if TYPE_CHECKING:
    import redis

    from producer.jobs.table.redis_scripts import Scripts

#: A worker not heard of for this long does not count as alive.
WORKER_SILENT_S = 60
_FORGOTTEN_S = 86_400
#: A problem that is not told again is over, or its worker is.
PROBLEM_LIFETIME_S = 120
#: A status names so many things that are waited for at most.
MOST_WAITS = 5
SPEEDS_LIFETIME_S = 30 * 86_400


class _Told(BaseModel):
    """What a worker reports of its waiting."""

    model_config = ConfigDict(frozen=True)

    what: str
    #: By Redis' clock, in seconds since 1970: when the wait began, and when it was told last.
    since: float
    at: float


def told_lately(line: bytes, now: float) -> _Told | None:
    """What a worker waits for, as `waits_for` stored it; None where nobody can read it, or it died with its wait."""
    try:
        told = _Told.model_validate_json(line)
    except ValidationError:  # of another version
        return None
    return told if now - told.at < WORKER_SILENT_S else None


def _alive(told: bytes, now: float) -> bool:
    return now - float(told.partition(b" ")[0]) < WORKER_SILENT_S


class WorkerRegistry:
    """The workers, as they report themselves."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def heartbeat(
        self, worker: str, queues: Sequence[str] = (), networks: Sequence[str] = (), warnings: Sequence[str] = ()
    ) -> None:
        """Report that a worker is alive, its release, the priorities that it reads, and the networks registered there.

        It reads all priorities where none is named. Warnings say what its settings leave open.
        """
        now = self.now()

        def heartbeat(client: redis.Redis) -> None:
            with client.pipeline(transaction=False) as pipe:
                pipe.zadd(keys.WORKERS, {worker: now})
                if queues:
                    pipe.hset(keys.QUEUES, worker, ",".join(queues))
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
                if silent := [name for name, told in found.items() if not _alive(told, now)]:
                    client.hdel(key, *silent)

        self._scripts.do(heartbeat)

    def releases(self, now: float) -> dict[str, str]:
        """The releases of the workers that are alive, each with the name of one of them."""
        return self._told_by(keys.RELEASES, now)

    def warnings(self, now: float) -> dict[str, str]:
        """What the settings of workers that are alive leave open, each with the name of one of them."""
        return self._told_by(keys.WARNINGS, now)

    def _told_by(self, key: str, now: float) -> dict[str, str]:
        found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(key)))
        return {text(name): text(told).partition(" ")[2] for name, told in found.items() if _alive(told, now)}

    def networks(self, *, patience_s: float | None = None) -> set[str]:
        """The networks that are registered with workers that are alive."""

        def networks(client: redis.Redis) -> set[str]:
            seconds, _ = client.time()
            found = cast("dict[bytes, bytes]", client.hgetall(keys.NETWORKS))
            return {text(name) for name, told in found.items() if _alive(told, seconds)}

        return self._scripts.do(networks, patience_s=patience_s)

    def deregister(self, worker: str) -> None:
        """Remove a worker that ends; it ends also when Redis is away."""

        def deregister(client: redis.Redis) -> None:
            client.zrem(keys.WORKERS, worker)
            client.hdel(keys.QUEUES, worker)
            client.hdel(keys.PROBLEMS, worker)
            client.hdel(keys.WAITS, worker)

        with suppress(ServiceError):
            self._scripts.do(deregister, patience_s=1.0)

    def forget_silent(self) -> None:
        """Remove workers without a heartbeat for a day."""

        def forget(client: redis.Redis) -> None:
            names = cast("list[bytes]", client.zrangebyscore(keys.WORKERS, "-inf", self.now() - _FORGOTTEN_S))
            if names:
                client.zrem(keys.WORKERS, *names)
                client.hdel(keys.QUEUES, *names)

        self._scripts.do(forget)

    def report_problem(self, worker: str, sentence: str) -> None:
        """Report what keeps a worker from working; the status of a job shows it."""
        self._scripts.do(lambda client: client.hset(keys.PROBLEMS, worker, sentence))
        self._scripts.do(lambda client: client.expire(keys.PROBLEMS, keys.PROBLEM_LIFETIME_S))

    def recovered(self, worker: str) -> None:
        """Report that a worker can work again."""
        self._scripts.do(lambda client: client.hdel(keys.PROBLEMS, worker))

    def waits_for(self, worker: str, what: str, for_s: float) -> None:
        """Report what a worker waits for, and for how long; call it again while the wait lasts."""
        now = self.now()
        told = _Told(what=what, since=now - for_s, at=now)

        def tell(client: redis.Redis) -> None:
            client.hset(keys.WAITS, worker, told.model_dump_json())
            client.expire(keys.WAITS, keys.PROBLEM_LIFETIME_S)

        self._scripts.do(tell, patience_s=1.0)

    def waits_no_more(self, worker: str) -> None:
        """Withdraw the report of `waits_for`."""
        self._scripts.do(lambda client: client.hdel(keys.WAITS, worker), patience_s=1.0)

    def waits(self, now: float) -> tuple[Wait, ...]:
        """What workers wait for, the longest wait first."""
        found = self._scripts.do(lambda client: cast("dict[bytes, bytes]", client.hgetall(keys.WAITS)))
        longest: dict[str, list[float]] = {}
        for line in found.values():
            if told := told_lately(line, now):
                longest.setdefault(told.what, []).append(now - told.since)
        waits = [Wait(what=what, workers=len(ages), longest_s=round(max(ages), 1)) for what, ages in longest.items()]
        return tuple(sorted(waits, key=lambda wait: -wait.longest_s)[:MOST_WAITS])

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

    def note_speed(self, network: str, images_per_s: float) -> None:
        """Store the speed of one process with a network; submissions choose the chunk size by it."""

        def note(client: redis.Redis) -> None:
            client.hset(keys.SPEEDS, network, f"{images_per_s:.2f}")
            client.expire(keys.SPEEDS, SPEEDS_LIFETIME_S)

        self._scripts.do(note)

    def speed(self, network: str) -> float | None:
        """How many images a second one process explains with a network; None where nobody did lately."""
        found = self._scripts.do(lambda client: cast("bytes | None", client.hget(keys.SPEEDS, network)))
        return float(found) if found else None

    def note_batch_size(self, batch_key: str, size: int) -> None:
        """Store the best batch size for a kind of work; the next process begins with it."""

        def note(client: redis.Redis) -> None:
            client.hset(keys.BATCH_SIZES, batch_key, size)
            client.expire(keys.BATCH_SIZES, SPEEDS_LIFETIME_S)

        with suppress(ServiceError):  # the next process finds it again
            self._scripts.do(note, patience_s=1.0)

    def batch_size(self, batch_key: str) -> int | None:
        """The best batch size for a kind of work; None where nobody measured it lately."""
        found = self._scripts.do(lambda client: cast("bytes | None", client.hget(keys.BATCH_SIZES, batch_key)))
        return int(found) if found else None

    def now(self) -> float:
        """The server's time in seconds since 1970."""
        seconds, micros = self._scripts.do(lambda client: client.time())
        return seconds + micros / 1e6
