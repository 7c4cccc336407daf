"""The Redis itself: whether it lets us do what we must, and whether it keeps what it is given.

Rights are found by trying: to be told one's own rights is a right that few users have.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final, cast

import redis

from producer.jobs.model import keys
from producer.jobs.model.errors import Unfit
from producer.jobs.table.redis_scripts import grant, hello, text

if TYPE_CHECKING:
    from producer.jobs.table.redis_scripts import Scripts

#: Commands that are called beside the scripts, by both sides; `LPUSH` is kombu's.
DIRECT: Final = (
    *("EXISTS", "EXPIRE", "GETRANGE", "HDEL", "HGET", "HGETALL", "HMGET", "HSET", "LPUSH", "LRANGE", "PING", "SET"),
    *("SMEMBERS", "SREM", "TIME", "ZADD", "ZCOUNT", "ZRANGE", "ZREM", "ZREVRANGE"),
)
#: What kombu calls to read the queues, which only a worker does.
READING: Final = ("BRPOP", "LLEN", "RPUSH")
_LOOK_EVERY_S: Final = 30.0
_CALLED: Final = re.compile(r"(?:redis\.p?call|ask)\(\s*['\"]([A-Z]+)['\"]")


@cache
def scripted() -> frozenset[str]:
    """The commands that the scripts in `lua/` call."""
    sources = (path.read_text() for path in files("producer.jobs.table.lua").iterdir() if path.name.endswith(".lua"))
    return frozenset(name for source in sources for name in _CALLED.findall(source))


@dataclass(frozen=True)
class Memory:
    """What Redis says of its memory; None where it does not tell."""

    used_bytes: int | None
    #: 0 where there is no limit.
    limit_bytes: int | None
    policy: str | None

    @property
    def evicts(self) -> bool:
        """Whether it is known to drop keys when it is full."""
        return bool(self.limit_bytes) and self.policy not in {None, "noeviction"}

    @property
    def problem(self) -> str | None:
        """What is wrong with it, and what to do, in a sentence; None where nothing is."""
        if not self.evicts:
            return None
        return f"Redis drops jobs when it is full ({self.policy}): `CONFIG SET maxmemory-policy noeviction`"

    @property
    def fullness(self) -> float:
        """The share of its limit that it holds; 0 where it has none, or does not tell."""
        return self.used_bytes / self.limit_bytes if self.used_bytes and self.limit_bytes else 0.0


class Server:
    """Questions about the Redis behind `Scripts`."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        #: Whether this user may not ask for the memory, which is then not asked for again.
        self._silent = False
        #: When the memory was looked at last, and what was found.
        self._looked: tuple[float, Memory] = (-math.inf, Memory(None, None, None))

    def check(self, *, reads_queues: bool, allow_eviction: bool) -> None:
        """Make sure that jobs can be kept here, and that we may do all we need.

        Args:
            reads_queues: Whether we are a worker, which needs more.
            allow_eviction: Whether a Redis that drops keys when it is full will do.

        Raises:
            Unfit: It does not do; says what to do.
            ServiceError: It is away.
        """
        kind = self._scripts.do(hello).get("mode", "")
        if kind in {"sentinel", "cluster"}:
            raise Unfit(
                f"GRADCAM_REDIS_URL leads to a {kind.capitalize()}, which is not read: give the address of one primary"
            )
        if missing := self.missing(reads_queues=reads_queues):
            raise Unfit(self.refusal(missing))
        if not allow_eviction and (problem := self.memory().problem):
            raise Unfit(f"{problem}, or set GRADCAM_ALLOW_EVICTION=true to use it all the same")

    def missing(self, *, reads_queues: bool = True) -> list[str]:
        """The commands we need and may not run, in the order of the alphabet; `~` where it is our keys.

        Raises:
            Unfit: Not even scripts may be run.
            ServiceError: Redis is away.
        """
        needed = sorted({*DIRECT, *scripted(), *(READING if reads_queues else ())})
        found = self._scripts.run("rights", [f"{keys.RIGHTS}:{uuid.uuid4().hex}"], needed)
        return sorted({text(name) for name in found})

    def refusal(self, missing: list[str]) -> str:
        """Say which rights a user lacks, and how it gets them."""
        return grant(self._scripts.user, missing)

    def memory(self) -> Memory:
        """What Redis says of its memory; all fields are None for a user who may not ask."""
        nothing = Memory(None, None, None)
        if self._silent:
            return nothing
        info = self._scripts.do(_memory)
        self._silent = not info
        used, limit = info.get("used_memory"), info.get("maxmemory")
        policy = info.get("maxmemory_policy") or info.get("maxmemory-policy")
        return Memory(
            None if used is None else int(used), None if limit is None else int(limit), str(policy) if policy else None
        )

    def problem(self) -> str | None:
        """What is wrong with its memory, as it was within the last half minute; None where nothing is known to be."""
        return self._lately().problem

    def fullness_lately(self) -> float:
        """What `fullness` was within the last half minute."""
        return self._lately().fullness

    def _lately(self) -> Memory:
        looked_at, found = self._looked
        if time.monotonic() - looked_at > _LOOK_EVERY_S:
            found = self.memory()
            self._looked = time.monotonic(), found
        return found

    def wait_until_on_disk(self) -> None:
        """Wait until Redis has this process's last write on its disk, if it has one and can tell (since 7.2)."""

        def wait(client: redis.Redis) -> None:
            with suppress(redis.exceptions.ResponseError):
                client.waitaof(1, 0, 2000)

        self._scripts.do(wait)

    def fullness(self) -> float:
        """The share of its `maxmemory` that Redis holds; 0 where it has no limit, or does not tell."""
        return self.memory().fullness


def _memory(client: redis.Redis) -> dict[str, str | int]:
    # Either is often forbidden, and some who sell Redis leave the policy out of one of them.
    info: dict[str, str | int] = {}
    with _where_allowed():
        info |= client.info("memory")
    if "maxmemory_policy" not in info:
        with _where_allowed():
            found = cast("dict[bytes | str, bytes | str]", client.config_get("maxmemory*"))
            info |= {_text(name): _text(value) for name, value in found.items()}
    return info


def _text(word: bytes | str) -> str:
    return word.decode() if isinstance(word, bytes) else word


@contextmanager
def _where_allowed() -> Iterator[None]:
    try:
        yield
    except redis.exceptions.ResponseError as error:
        # A command that was renamed away is unknown.
        if not isinstance(error, redis.exceptions.NoPermissionError) and "unknown command" not in str(error).lower():
            raise
