"""Is everything there that a job needs? One line a question, and what to do where the answer is no."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import urllib3
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError

from producer.jobs.model import keys, release
from producer.jobs.model.errors import GradcamError
from producer.jobs.model.redaction import redact_text
from producer.jobs.model.text import counted
from producer.jobs.store.bucket import Storage
from producer.jobs.store.finalize import versions
from producer.jobs.table.redis_scripts import Scripts, connect, hello, user_of, version_of
from producer.jobs.table.redis_server import Server
from producer.jobs.table.workers import WORKER_SILENT_S, WorkerRegistry

if TYPE_CHECKING:
    import redis

    from producer.jobs.model.settings import Connections

_T = TypeVar("_T")
#: How long a server may take to answer one question.
LIMIT_S: Final = 5.0
#: Redis 6.2 is the oldest that has all the commands our scripts use.
OLDEST_REDIS = (6, 2)
#: S3 refuses signatures that are more than 15 minutes off.
MAX_SKEW_S = 300.0
_NEARLY_FULL = 0.7


class Answer(BaseModel):
    """What became of one question."""

    model_config = ConfigDict(frozen=True)

    #: What was asked.
    check: str
    #: `warn` lets jobs run, and somebody should know; `bad` does not.
    verdict: Literal["ok", "warn", "bad"]
    #: What was found, and what to do where it is not ok.
    words: str


class _NoAnswer(GradcamError):
    """A server did not answer in time; what it is asked next would take as long."""


def examine(settings: Connections) -> Iterator[Answer]:
    """Ask everything, one after the other; nothing stays behind, neither in Redis nor in the store.

    Each question has 5 s, and a server that does not answer is asked nothing more.
    """
    yield Answer(
        check="versions",
        verdict="ok",
        words=", ".join(f"{n} {v}" for n, v in versions("gradcam-queue", "celery", "redis", "boto3").items()),
    )
    yield from _redis(settings)
    yield from _store(settings)


def _within(call: Callable[[], _T]) -> _T:
    """What a call gives, or raises; one that takes too long is left behind in its thread, which ends with the process.

    Raises:
        _NoAnswer: It takes too long.
    """
    ended: Queue[tuple[_T | None, Exception | None]] = Queue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = ended.get(timeout=LIMIT_S)
    except Empty:
        raise _NoAnswer(f"no answer within {LIMIT_S:g} s: it hangs, or the network before it does") from None
    if error is not None:
        raise error
    return cast("_T", value)


def _redis(settings: Connections) -> Iterator[Answer]:
    try:
        client = _within(lambda: connect(settings))
    except GradcamError as error:
        yield Answer(check="Redis", verdict="bad", words=str(error))
        return
    if settings.redis.tls:
        unchecked = settings.redis.unchecked
        words = unchecked or "its certificate is valid"
        yield Answer(check="TLS", verdict="warn" if unchecked else "ok", words=words)
    for name, question in _REDIS.items():
        try:
            yield _within(lambda: question(client))  # noqa: B023 - called before the next one is taken
        except _NoAnswer as error:
            yield Answer(check=name, verdict="bad", words=str(error))
            return
        except GradcamError as error:
            yield Answer(check=name, verdict="bad", words=str(error))
        except RedisError as error:
            yield Answer(
                check=name,
                verdict="warn",
                words=f"cannot be asked ({redact_text(str(error))}): allow it, or look yourself",
            )
        except (LookupError, TypeError, ValueError) as error:
            # Others than Redis and Valkey speak its language, each a little otherwise.
            words = f"what this Redis answers cannot be read ({type(error).__name__}): look yourself"
            yield Answer(check=name, verdict="warn", words=words)


def _server(client: redis.Redis) -> Server:
    return Server(Scripts(client, patience_s=0))


def _version(client: redis.Redis) -> Answer:
    found = hello(client)
    version = version_of(found)
    if not version:
        return Answer(check="Redis", verdict="warn", words="its version cannot be asked: use 6.2 or later, or Valkey")
    name = f"{found.get('server', 'redis')} {found.get('version', '')}"
    new = version[:2] >= OLDEST_REDIS
    if (kind := found.get("mode", "standalone")) != "standalone":
        return Answer(check="Redis", verdict="bad", words=f"{name} is a {kind}: use one primary, Celery needs it")
    words = name if new else f"{name} is too old: use 6.2 or later, or Valkey"
    return Answer(check="Redis", verdict="ok" if new else "bad", words=words)


def _rights(client: redis.Redis) -> Answer:
    server = _server(client)
    if missing := server.missing():
        return Answer(check="rights", verdict="bad", words=server.refusal(missing))
    return Answer(check="rights", verdict="ok", words=f"all that producers and workers need, for {user_of(client)}")


def _persistence(client: redis.Redis) -> Answer:
    info: dict[str, Any] = client.info("persistence")
    if "aof_enabled" not in info:
        words = "it does not tell whether it keeps what it was given over a restart: look yourself, or jobs may be lost"
        return Answer(check="persistence", verdict="warn", words=words)
    if not int(info["aof_enabled"]):
        words = "off: a restart of Redis loses every job; set `appendonly yes` and `appendfsync everysec`"
        return Answer(check="persistence", verdict="bad", words=words)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Answer(check="persistence", verdict="bad", words="the last write to disk failed: look at Redis' disk")
    return Answer(check="persistence", verdict="ok", words="appendonly yes")


def _eviction(client: redis.Redis) -> Answer:
    memory = _server(client).memory()
    if memory.policy is None:
        words = "cannot be asked: allow INFO or CONFIG GET, or see yourself that maxmemory-policy is noeviction"
        return Answer(check="eviction", verdict="warn", words=words)
    if memory.problem:
        return Answer(check="eviction", verdict="bad", words=memory.problem)
    if memory.policy != "noeviction":
        words = f"{memory.policy}: harmless without maxmemory; `CONFIG SET maxmemory-policy noeviction` all the same"
        return Answer(check="eviction", verdict="warn", words=words)
    return Answer(check="eviction", verdict="ok", words=memory.policy)


def _memory(client: redis.Redis) -> Answer:
    memory = _server(client).memory()
    used, limit = memory.used_bytes, memory.limit_bytes
    if used is None or limit is None:
        words = (
            "cannot be asked: allow INFO, without it producers wait only when Redis is full, and no alert tells of it"
        )
        return Answer(check="memory", verdict="warn", words=words)
    if not limit:
        words = f"{used / 2**20:.0f} MiB used, no limit: no alert can warn that it fills up; `CONFIG SET maxmemory`"
        return Answer(check="memory", verdict="warn", words=words)
    words = f"{used / limit:.0%} of {limit / 2**20:.0f} MiB used"
    if used / limit < _NEARLY_FULL:
        return Answer(check="memory", verdict="ok", words=words)
    return Answer(check="memory", verdict="warn", words=f"{words}: producers wait at 80 %; raise maxmemory")


def _clock(client: redis.Redis) -> Answer:
    seconds, micros = client.time()
    skew_s = abs(time.time() - seconds - micros / 1e6)
    if skew_s < MAX_SKEW_S:
        return Answer(check="clock", verdict="ok", words=f"{skew_s:.1f} s from Redis'")
    return Answer(check="clock", verdict="bad", words=f"{skew_s:.0f} s from Redis': set this clock by NTP, S3 needs it")


def _workers(client: redis.Redis) -> Answer:
    seconds, _ = client.time()
    registry = WorkerRegistry(Scripts(client, patience_s=0))
    alive = int(client.zcount(keys.WORKERS, seconds - WORKER_SILENT_S, "+inf"))
    if problems := registry.problems(seconds):
        words = f"{alive} alive; {len(problems)} cannot work: {problems[0]}"
        return Answer(check="workers", verdict="warn", words=words)
    if not alive:
        return Answer(check="workers", verdict="warn", words="none is running: start `gradcam-worker`")
    if waits := registry.waits(seconds):
        waiting = counted(waits[0].workers, "waits", "wait")
        words = f"{alive} alive; {waiting} for {waits[0].what}, for {waits[0].longest_s:.0f} s"
        return Answer(check="workers", verdict="warn", words=words)
    return Answer(check="workers", verdict="ok", words=f"{alive} alive")


def _releases(client: redis.Redis) -> Answer:
    seconds, _ = client.time()
    found = WorkerRegistry(Scripts(client, patience_s=0)).releases(seconds)
    if other := {name: worker for name, worker in found.items() if name != release.own()}:
        words = f"{release.others(other)}: update what is older, and start it again"
        return Answer(check="releases", verdict="warn", words=words)
    return Answer(check="releases", verdict="ok", words=f"all workers that tell are of {release.own()}, as this is")


def _policy(client: redis.Redis) -> Answer:
    seconds, _ = client.time()
    found = WorkerRegistry(Scripts(client, patience_s=0)).warnings(seconds)
    if not found:
        return Answer(check="policy", verdict="ok", words="no worker tells of something that is open by default")
    words = "; ".join(f"{words} ({worker})" for words, worker in sorted(found.items()))
    return Answer(check="policy", verdict="warn", words=words)


_REDIS: dict[str, Callable[[redis.Redis], Answer]] = {
    "Redis": _version,
    "rights": _rights,
    "persistence": _persistence,
    "eviction": _eviction,
    "memory": _memory,
    "clock": _clock,
    "workers": _workers,
    "releases": _releases,
    "policy": _policy,
}


def _store(settings: Connections) -> Iterator[Answer]:
    try:
        storage = _within(lambda: Storage.from_settings(settings))
        _within(storage.check)
    except GradcamError as error:
        yield Answer(check="S3 list", verdict="bad", words=str(error))
        return
    yield Answer(check="S3 list", verdict="ok", words=storage.place)
    key = f"{keys.probe(storage.prefix)}-{uuid.uuid4().hex}"

    def read() -> None:
        if storage.get(key) != key.encode():
            raise GradcamError("what was written comes back as something else: look at the store, or a proxy before it")

    steps: dict[str, Callable[[], object]] = {
        "S3 write": lambda: storage.put(key, key.encode()),
        "S3 read": read,
        "S3 delete": lambda: storage.delete([key]),
    }
    for name, step in steps.items():
        try:
            _within(step)
        except _NoAnswer as error:
            yield Answer(check=name, verdict="bad", words=str(error))
            return
        except GradcamError as error:
            yield Answer(check=name, verdict="bad", words=str(error))
        else:
            yield Answer(check=name, verdict="ok", words="done")
            if name == "S3 read" and settings.s3_public_endpoint_url:
                yield _public(storage, key)


def _public(storage: Storage, key: str) -> Answer:
    """Whether an address that is signed for others gives an object, as far as this machine can tell."""
    variable = "GRADCAM_S3_PUBLIC_ENDPOINT_URL"
    address = storage.presigned_url(key, expires_s=60)
    verdict: Literal["ok", "warn"] = "warn"
    try:
        with urllib3.PoolManager(retries=False, timeout=LIMIT_S) as pool:
            answer = _within(lambda: pool.request("GET", address, redirect=False))
    except (urllib3.exceptions.HTTPError, _NoAnswer) as error:
        words = (
            f"{variable} cannot be reached from this machine ({type(error).__name__.lstrip('_')}), which others may: "
            "open an address of `gradcam results JOB --urls` where it is to be opened"
        )
    else:
        if answer.status != HTTPStatus.OK:
            words = f"{variable} answers {answer.status} to an address that is signed for it: it is another store, or "
            words += "a proxy before it changes the host or the path"
        elif answer.data != key.encode():
            words = f"what {variable} gives is not the object that was written: it is another store"
        else:
            verdict, words = "ok", "an address that is signed for others gives its object"
    return Answer(check="S3 public", verdict=verdict, words=words)
