"""Redis as the job table uses it: Lua scripts, and patience with a server that is away or full.

Every command that goes through here may be sent again after a lost reply, so that waiting and repeating is always
right.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from producer.jobs.errors import ServiceError

if TYPE_CHECKING:
    from redis.commands.core import Script

    from producer.jobs.settings import Connections

_T = TypeVar("_T")

#: How long a Redis that is away or refuses to write is waited for.
PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: Scripts that a full Redis may refuse, because they would make it fuller; the others are how it gets empty again.
_GROWING = frozenset({"create", "add_chunk", "reopen"})
_ALLOW_OOM, _SCRIPT_FLAGS_SINCE = "#!lua flags=allow-oom\n", 7
_LIBRARY = (
    *("_now", "_life", "_bits", "_strikes", "_death"),
    *("_failures", "_end", "_turns", "_maintenance", "_convict"),
)
#: What Redis says when its disk is full, its primary is away, a script runs for too long, or a script found it full.
_REFUSED = re.compile(r"(MISCONF|MASTERDOWN|OOM|NOREPLICAS|BUSY|UNBLOCKED)\b")


def make_client(settings: Connections) -> redis.Redis:
    """Make a client of Redis; it connects when it is first used."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=10,
        socket_connect_timeout=5,
        socket_keepalive=True,
        health_check_interval=25,
        # Once, for a pooled connection that died meanwhile; `Scripts` has the patience.
        retry=Retry(NoBackoff(), 1),
    )


def connect(settings: Connections) -> redis.Redis:
    """Connect to Redis and make sure that it answers.

    Raises:
        ServiceError: It does not, or refuses us; names the address, never the password.
    """
    client = make_client(settings)
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


class Scripts:
    """Runs commands and the scripts in `lua/`; safe to share between threads.

    Args:
        client: A connection.
        patience_s: How long a Redis that is away, starting, or full is waited for.
    """

    def __init__(self, client: redis.Redis, *, patience_s: float = PATIENCE_S) -> None:
        self._redis = client
        self._patience_s = patience_s
        self._scripts: dict[str, Script] = {}

    def run(self, name: str, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run one script. Errors as `do`."""
        return self.do(lambda client: self._script(name, client)(keys=list(names), args=list(arguments)))

    def do(self, command: Callable[[redis.Redis], _T], *, patience_s: float | None = None) -> _T:
        """Call a command, again and again while Redis is away or refuses to write.

        Args:
            command: What to call.
            patience_s: For this one call, in place of what was said for all.

        Raises:
            ServiceError: It still does after `patience_s`, or it refuses our password.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return command(self._redis)
            except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
                raise ServiceError(f"Redis refuses us ({error}): correct GRADCAM_REDIS_URL") from None
            except redis.exceptions.RedisError as error:
                why = _passing(error)
                if why is None:
                    raise
                if time.monotonic() + pause_s > deadline:
                    raise ServiceError(
                        f"Redis {why} for {patience_s:g} s ({type(error).__name__}): try again when it is back"
                    ) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _script(self, name: str, client: redis.Redis) -> Script:
        script = self._scripts.get(name)
        if script is None:
            version = client.info("server")["redis_version"]
            has_flags = int(version.split(".")[0]) >= _SCRIPT_FLAGS_SINCE
            header = _ALLOW_OOM if has_flags and name not in _GROWING else ""
            script = self._scripts[name] = client.register_script(header + _source(name))
        return script


def _source(name: str) -> str:
    lua = files("producer.jobs.lua")
    return "\n".join((lua / f"{part}.lua").read_text() for part in (*_LIBRARY, name))


def _passing(error: redis.exceptions.RedisError) -> str | None:
    """What is wrong with Redis, where it may pass; None where repeating helps nothing."""
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return "has been full"
    if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
        return "has been away"  # also while it loads its files
    if isinstance(error, redis.exceptions.ReadOnlyError) or _REFUSED.match(str(error)):
        return "has refused to write"
    return None


def text(value: bytes) -> str:
    """A word of Redis."""
    return value.decode()
