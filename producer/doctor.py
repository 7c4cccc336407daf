"""Is everything there that a job needs? One line a question, and what to do where the answer is no."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError

from producer.jobs import keys
from producer.jobs.errors import GradcamError
from producer.jobs.finalise import versions
from producer.jobs.scripts import connect
from producer.jobs.storage import Storage

if TYPE_CHECKING:
    import redis

    from producer.jobs.settings import Connections

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


def examine(settings: Connections) -> Iterator[Answer]:
    """Ask everything, one after the other; nothing stays behind, neither in Redis nor in the store."""
    yield Answer(
        check="versions",
        verdict="ok",
        words=", ".join(f"{n} {v}" for n, v in versions("gradcam-queue", "celery", "redis", "boto3").items()),
    )
    client = None
    try:
        client = connect(settings)
    except GradcamError as error:
        yield Answer(check="Redis", verdict="bad", words=str(error))
    if client is not None:
        for name, question in _REDIS.items():
            yield _asked(name, question, client)
    yield from _store(settings)


def _asked(name: str, question: Callable[[redis.Redis], Answer], client: redis.Redis) -> Answer:
    try:
        return question(client)
    except RedisError as error:
        return Answer(check=name, verdict="warn", words=f"cannot be asked ({error}): allow it, or look yourself")


def _version(client: redis.Redis) -> Answer:
    info: dict[str, Any] = client.info("server")
    version = str(info["redis_version"])
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', version)}"
    new = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_REDIS
    if info.get("redis_mode") == "cluster":
        return Answer(check="Redis", verdict="bad", words=f"{name} is a cluster: use one primary, Celery needs it")
    words = name if new else f"{name} is too old: use 6.2 or later, or Valkey"
    return Answer(check="Redis", verdict="ok" if new else "bad", words=words)


def _persistence(client: redis.Redis) -> Answer:
    info: dict[str, Any] = client.info("persistence")
    if not int(info["aof_enabled"]):
        words = "off: a restart of Redis loses every job; set `appendonly yes` and `appendfsync everysec`"
        return Answer(check="persistence", verdict="bad", words=words)
    if info.get("aof_last_write_status") != "ok":
        return Answer(check="persistence", verdict="bad", words="the last write to disk failed: look at Redis' disk")
    return Answer(check="persistence", verdict="ok", words="appendonly yes")


def _eviction(client: redis.Redis) -> Answer:
    policy = str(client.info("memory").get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Answer(check="eviction", verdict="ok", words=policy)
    words = f"{policy}: Redis may drop jobs; set `maxmemory-policy noeviction`"
    return Answer(check="eviction", verdict="bad", words=words)


def _memory(client: redis.Redis) -> Answer:
    info: dict[str, Any] = client.info("memory")
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if not limit:
        return Answer(check="memory", verdict="ok", words=f"{used / 2**20:.0f} MiB used, no limit")
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
    alive = int(client.zcount(keys.WORKERS, seconds - 60, "+inf"))
    problems = cast("list[bytes]", client.hvals(keys.PROBLEMS))
    if problems:
        words = f"{alive} alive; {len(problems)} cannot work: {problems[0].decode()}"
        return Answer(check="workers", verdict="warn", words=words)
    if not alive:
        return Answer(check="workers", verdict="warn", words="none is running: start `gradcam-worker`")
    return Answer(check="workers", verdict="ok", words=f"{alive} alive")


_REDIS: dict[str, Callable[[redis.Redis], Answer]] = {
    "Redis": _version,
    "persistence": _persistence,
    "eviction": _eviction,
    "memory": _memory,
    "clock": _clock,
    "workers": _workers,
}


def _store(settings: Connections) -> Iterator[Answer]:
    try:
        storage = Storage.from_settings(settings)
        storage.check()
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
            step()
        except GradcamError as error:
            yield Answer(check=name, verdict="bad", words=str(error))
        else:
            yield Answer(check=name, verdict="ok", words="done")
