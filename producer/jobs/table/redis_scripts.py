"""Redis as the job table uses it: Lua scripts, and patience with a server that is away or full.

Every command that goes through here may be sent again after a lost reply, so that waiting and repeating is always
right.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from producer.jobs.model.certificates import failed_tls, refused_certificate
from producer.jobs.model.errors import ServiceError, Unfit, UnreadableJob
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.names import is_job_name
from producer.jobs.model.redaction import redact_text
from producer.jobs.model.setting_files import variable_of
from producer.jobs.model.waits import REDIS, waiting

if TYPE_CHECKING:
    from redis.commands.core import Script

    from producer.jobs.model.settings import Connections

_T = TypeVar("_T")

#: How long a Redis that is away or refuses to write is waited for.
PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: Scripts that a full Redis may refuse, because they would make it fuller; the others are how it gets empty again.
_GROWING = frozenset({"create", "add_chunk", "reopen"})
_ALLOW_OOM, _SCRIPT_FLAGS_SINCE = "#!lua flags=allow-oom\n", 7
_LIBRARY = (
    *("_now", "_names", "_checked", "_counts", "_life", "_bits", "_strikes", "_death"),
    *("_failures", "_end", "_round_robin", "_maintenance", "_convict", "_history"),
)
#: How Redis names the command that a user may not run, and how it says that a key is refused.
_FORBIDDEN = re.compile(r"no permissions to run the '([^']+)' command")
_FORBIDDEN_KEY = re.compile(r"permissions to access|can't access at least one of the keys")
#: What our scripts say of what is not as we write it: a field of a job, or a key that jobs share.
_UNREADABLE, _UNREADABLE_KEY = re.compile(r"UNREADABLE <([^>]*)>"), re.compile(r"UNREADABLE KEY <([^>]*)>")
#: What Redis says when its disk is full, its primary is away, a script runs for too long, or a script found it full.
_REFUSED = re.compile(r"(MISCONF|MASTERDOWN|OOM|NOREPLICAS|BUSY|UNBLOCKED)\b")


def make_redis_client(settings: Connections, *, answers_within_s: float = 10) -> redis.Redis:
    """Make a client of Redis; it connects when it is first used.

    Args:
        settings: Where it is.
        answers_within_s: How long it may take to answer, where its URL says nothing else.
    """
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    url = settings.redis
    options = {
        "socket_timeout": answers_within_s,
        "socket_connect_timeout": min(5, answers_within_s),
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
    return redis.Redis(
        host=url.host,
        port=url.port,
        db=url.database,
        username=url.user,
        password=url.password,
        ssl=url.tls,
        **{**options, **url.options, **url.ssl},
        # Once, for a pooled connection that died meanwhile; `Scripts` has the patience.
        retry=Retry(NoBackoff(), 1),
    )


def connect(
    settings: Connections, *, patience_s: float = 0.0, tell: Callable[[str], None] | None = None
) -> redis.Redis:
    """Connect to Redis and make sure that it answers.

    Args:
        settings: Where it is.
        patience_s: How long one that is away is waited for.
        tell: Called with a sentence, once, where it is.

    Raises:
        ServiceError: It does not, or refuses us; names the address, never the password.
    """
    client = make_redis_client(settings)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _answering(client, settings)
        except Unfit:
            raise
        except ServiceError as error:
            if not _is_away(error.__context__) or time.monotonic() + _LONGEST_PAUSE_S > deadline:
                raise
            if tell:
                tell(f"{error}; waiting for it, {patience_s:g} s at most")
                tell = None
        time.sleep(_LONGEST_PAUSE_S)


def _answering(client: redis.Redis, settings: Connections) -> redis.Redis:
    """Give the client back where Redis answers. Errors as `connect`."""
    try:
        client.ping()
    except redis.exceptions.AuthenticationError:
        raise ServiceError(f"Redis at {settings.redis_address} refuses the password in GRADCAM_REDIS_URL") from None
    except redis.exceptions.ResponseError as error:
        why = (
            _forbidden(error, user_of(client))
            or f"Redis at {settings.redis_address} refuses us: {redact_text(str(error))}"
        )
        raise ServiceError(why) from None
    except redis.exceptions.RedisError as error:
        if problem := _tls_problem(error, client):
            raise Unfit(problem) from None
        hint = ""
        if not settings.redis.tls and re.search("closed|reset", str(error), re.IGNORECASE):
            hint = " (rediss:// where it speaks TLS)"
        elif settings.redis.tls and isinstance(error, redis.exceptions.TimeoutError):
            hint = " (redis:// where it speaks no TLS)"
        raise ServiceError(
            f"Redis at {settings.redis_address} cannot be used ({type(error).__name__}): "
            f"start it, or correct {variable_of('GRADCAM_REDIS_URL')}{hint}"
        ) from None
    return client


def _tls_problem(error: redis.exceptions.RedisError, client: redis.Redis) -> str | None:
    """Describe what is wrong with the certificate or the TLS of a server, if that is the error."""
    options = client.get_connection_kwargs()
    place = f"Redis at {options.get('host')}:{options.get('port')}"
    if why := refused_certificate(error):
        return (
            f"{place} shows a certificate that is not valid here ({why}): name the file of its authority by "
            "?ssl_ca_certs=FILE in GRADCAM_REDIS_URL, or correct the host"
        )
    if why := failed_tls(error):
        return (
            f"{place} and we find no common TLS ({why}): write redis:// where it speaks none, and name ssl_certfile "
            "and ssl_keyfile in GRADCAM_REDIS_URL where it asks for a certificate"
        )
    return None


def user_of(client: redis.Redis) -> str:
    """The user that a client logs in as."""
    return client.get_connection_kwargs().get("username") or "default"


def grant(user: str, missing: Sequence[str]) -> str:
    """Say which rights a user lacks, and how it gets them.

    Args:
        user: Its name.
        missing: Commands, and `~` where it may not use our keys.
    """
    commands = [name.upper() for name in missing if name != "~"]
    what = [f"run {', '.join(commands)}"] if commands else []
    what += ["use the keys gradcam:*"] if "~" in missing else []
    rights = [f"+{name.lower()}" for name in commands] + (["~gradcam:*"] if "~" in missing else [])
    return (
        f"Redis does not let the user `{user}` {' nor '.join(what)}: `ACL SETUSER {user} {' '.join(rights)}` "
        "(docs/operations.md has all the rights it needs)"
    )


def _forbidden(error: redis.exceptions.RedisError, user: str) -> str | None:
    """Describe what a user may not do, if that is the error; it may come from a script's command."""
    if found := _FORBIDDEN.search(str(error)):
        return grant(user, [found[1]])
    return grant(user, ["~"]) if _FORBIDDEN_KEY.search(str(error)) else None


def hello(client: redis.Redis) -> dict[str, str]:
    """What a server says of itself to everybody: `server`, `version`, `mode`, …; nothing where it says nothing."""
    try:
        found: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.exceptions.ResponseError:
        return {}
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {text(name): text(value) for name, value in pairs if isinstance(name, bytes) and isinstance(value, bytes)}


def version_of(said: Mapping[str, str]) -> tuple[int, ...]:
    """The numbers of the version in what `hello` gives, `8.0-rc1` say; none where there are none."""
    return tuple(map(int, re.findall(r"[0-9]{1,9}", said.get("version", ""))))


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

    @property
    def user(self) -> str:
        """The user that Redis knows us as."""
        return user_of(self._redis)

    def run(self, name: str, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run one script. Errors as `do`; of a script whose first key is a job's as `of_job`."""

        def call(client: redis.Redis) -> Any:
            return self._script(name, client)(keys=list(names), args=list(arguments))

        job = JobKeys.job_of(names[0]) if names else None
        return self.do(call) if job is None else self.of_job(job, call)

    def of_job(self, job: str, command: Callable[[redis.Redis], _T]) -> _T:
        """Call a command that concerns one job's keys alone, and read what it gives.

        Args:
            job: Its id.
            command: What to call; a ValueError or OverflowError of it is one of what Redis holds.

        Raises:
            UnreadableJob: What Redis holds of the job is not as we write it.
            Unfit, ServiceError: As `do`.
        """
        try:
            return self.do(command)
        except redis.exceptions.ResponseError as error:
            found = _UNREADABLE.search(str(error))
            raise UnreadableJob(job, f"`{found[1]}`" if found else str(error)) from None
        except (ValueError, OverflowError) as error:  # UnicodeDecodeError and pydantic's among them
            raise UnreadableJob(job, type(error).__name__) from None

    @waiting(REDIS)
    def do(self, command: Callable[[redis.Redis], _T], *, patience_s: float | None = None) -> _T:
        """Call a command, again and again while Redis is away or refuses to write.

        Args:
            command: What to call.
            patience_s: For this one call, in place of what was said for all.

        Raises:
            Unfit: It refuses our password, or a command, which is named; its certificate is not valid.
            ServiceError: It is still away after `patience_s`; or a key that all jobs share is of another type.
            ResponseError: It refuses what was asked.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return command(self._redis)
            except redis.exceptions.RedisError as error:
                if forbidden := _forbidden(error, self.user):
                    raise Unfit(forbidden) from None
                if isinstance(error, redis.exceptions.AuthenticationError | redis.exceptions.NoPermissionError):
                    raise Unfit(
                        f"Redis refuses us ({redact_text(str(error))}): correct {variable_of('GRADCAM_REDIS_URL')}"
                    ) from None
                if key := _UNREADABLE_KEY.search(str(error)):
                    raise ServiceError(
                        f"Redis holds something under {key[1]} that is not ours: rename or delete that key, it is made "
                        "again"
                    ) from None
                why = _passing(error)
                if why is None:
                    raise
                if time.monotonic() + pause_s > deadline:
                    if problem := _tls_problem(error, self._redis):
                        raise Unfit(problem) from None
                    raise ServiceError(
                        f"Redis {why} for {patience_s:g} s ({type(error).__name__}): try again when it is back"
                    ) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _script(self, name: str, client: redis.Redis) -> Script:
        script = self._scripts.get(name)
        if script is None:
            # Not by INFO, which not every user may run; where nothing is said, a full Redis refuses more than it must.
            has_flags = version_of(hello(client))[:1] >= (_SCRIPT_FLAGS_SINCE,)
            header = _ALLOW_OOM if has_flags and name not in _GROWING else ""
            script = self._scripts[name] = client.register_script(header + _source(name))
        return script


def _source(name: str) -> str:
    lua = files("producer.jobs.table.lua")
    return "\n".join((lua / f"{part}.lua").read_text() for part in (*_LIBRARY, name))


def _is_away(error: BaseException | None) -> bool:
    away = isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError)
    return away and not isinstance(error, redis.exceptions.AuthenticationError)


def _passing(error: redis.exceptions.RedisError) -> str | None:
    """What is wrong with Redis, where it may pass; None where repeating helps nothing."""
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return "has been full"
    if _is_away(error):
        return "has been away"  # also while it loads its files
    if isinstance(error, redis.exceptions.ReadOnlyError) or _REFUSED.match(str(error)):
        return "has refused to write"
    return None


def job_names(found: Iterable[bytes]) -> list[str]:
    """Those of the names that Redis gives which a job can have; others are somebody's who may write to it."""
    names = (name.decode(errors="replace") for name in found)
    return [name for name in names if is_job_name(name)]


def text(value: bytes) -> str:
    """A word of Redis."""
    return value.decode()
