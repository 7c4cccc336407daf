"""Where Redis and the object store are: read once from the environment, every problem reported at once.

| variable                   | meaning                                              | default         |
|----------------------------|------------------------------------------------------|-----------------|
| `GRADCAM_REDIS_URL`        | `redis://` or `rediss://` address of the job table   | required        |
| `GRADCAM_S3_BUCKET`        | bucket of the pictures                               | required        |
| `GRADCAM_S3_ENDPOINT_URL`  | an S3-compatible server                              | AWS             |
| `GRADCAM_S3_PREFIX`        | where in the bucket everything of ours lies          | `gradcam`       |
| `GRADCAM_ALLOW_EVICTION`   | whether a Redis that may drop jobs is used all the same | false        |
| `GRADCAM_JOB_LIFETIME_DAYS`| how long a finished job stays in Redis               | 30              |
| `GRADCAM_USER`             | who a job's history says did something               | user@host       |
| `GRADCAM_LOG`              | `text` or `json`: how workers write their log        | text            |
| `GRADCAM_TRACES`           | `off`, or `otlp`: spans go to an OpenTelemetry collector | off         |
| `AWS_*`                    | credentials and region, as boto3 reads them          | boto3's own     |

Each may be given as the path of a file that holds it, as `GRADCAM_REDIS_URL_FILE=/run/secrets/redis_url`: so secrets
come into containers. `GRADCAM_WORKER_*` are the worker's (`worker/settings.py`), `GRADCAM_TEST_*` the test suite's.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from producer.jobs.model.errors import SettingsError
from producer.jobs.model.redis_url import RedisUrl
from producer.jobs.model.text import NAME_CHARS, shown

LogFormat = Literal["text", "json"]
TraceExport = Literal["off", "otlp"]

_Model = TypeVar("_Model", bound=BaseSettings)
_Other = TypeVar("_Other", bound=BaseSettings)

#: Names that others read; they are not misspelt ones of ours.
_OTHERS = ("GRADCAM_WORKER_", "GRADCAM_TEST_")
#: At the end of a setting's name: the variable has the path of a file that holds it.
_FILE = "_FILE"
#: No setting is longer.
_MAX_FILE_BYTES = 65536


def _redis_url(value: SecretStr) -> SecretStr:
    RedisUrl.read(value.get_secret_value())
    return value


def _prefix(value: str) -> str:
    parts = value.strip("/").split("/")
    if any(part in {".", ".."} for part in parts) or "" in parts[1:]:
        raise ValueError("must be a path like team/gradcam, without . and ..")
    return "/".join(parts)


def _http_url(value: str | None) -> str | None:
    if not value:
        return None
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must look like http://host:port or https://host")
    if parts.username or parts.password:
        raise ValueError("must not hold credentials; put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return value


def _log_format(value: str) -> str:
    if value not in {"", "text", "json"}:
        raise ValueError("must be text or json")
    return value or "text"


def _trace_export(value: str) -> str:
    if value not in {"", "off", "otlp"}:
        raise ValueError("must be off or otlp")
    if value == "otlp":
        try:
            version("opentelemetry-exporter-otlp-proto-http")
        except PackageNotFoundError:
            raise ValueError("is otlp, which needs more packages: pip install 'gradcam-queue[otel]'") from None
    return value or "off"


class Connections(BaseSettings):
    """What producer and worker both need to reach each other."""

    model_config = SettingsConfigDict(env_prefix="GRADCAM_", frozen=True, extra="ignore")

    #: Address of the Redis (or Valkey) that holds the queue and the job table; may hold the password.
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)]
    #: Bucket that pictures, manifests and uploaded inputs go to.
    s3_bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    #: Address of an S3-compatible server; AWS itself when empty.
    s3_endpoint_url: Annotated[str | None, AfterValidator(_http_url)] = None
    #: All our keys begin with this.
    s3_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9!_.*'()/-]*$"), AfterValidator(_prefix)] = "gradcam"
    #: Whether a Redis whose `maxmemory-policy` lets it drop jobs is used all the same.
    allow_eviction: bool = False
    #: How long a finished job stays in Redis.
    job_lifetime_days: Annotated[float, Field(gt=0, le=3650)] = 30.0
    #: How workers write their log; the producer only knows the name.
    log: Annotated[LogFormat, BeforeValidator(_log_format)] = "text"
    #: Where spans of submissions and chunks go; OpenTelemetry reads its own `OTEL_*` variables.
    traces: Annotated[TraceExport, BeforeValidator(_trace_export)] = "off"

    #: Who a job's history says did something; the user and the machine's name when empty.
    user: Annotated[str | None, Field(max_length=100)] = None

    @property
    def redis_address(self) -> str:
        """The address without its secret, for messages."""
        return self.redis.address

    @property
    def redis(self) -> RedisUrl:
        """The address, read."""
        return RedisUrl.read(self.redis_url.get_secret_value())


def read(model: type[_Model]) -> _Model:
    """Read one model's settings from the environment.

    Raises:
        SettingsError: Names every missing, wrong and misspelt setting in one message.
    """
    settings, problems = _read(model)
    if settings is None or problems:
        raise SettingsError(_message(problems))
    return settings


def read_both(first: type[_Model], second: type[_Other]) -> tuple[_Model, _Other]:
    """Read two models' settings, reporting the problems of both at once. Raises SettingsError."""
    one, problems = _read(first)
    two, more = _read(second)
    if one is None or two is None or problems or more:
        raise SettingsError(_message(problems + more))
    return one, two


def _read(model: type[_Model]) -> tuple[_Model | None, list[str]]:
    prefix = str(model.model_config.get("env_prefix", ""))
    known = {f"{prefix}{name}".upper(): name for name in model.model_fields}
    others = tuple(other for other in _OTHERS if other != prefix)
    problems = _misspelt(os.environ, prefix, [*known, *(f"{name}{_FILE}" for name in known)], others)
    values: dict[str, Any] = {}
    for name, field in known.items():
        # An empty variable is one that is not set; a setting's own name may end alike (GRADCAM_WORKER_DRAIN_FILE).
        path = os.environ.get(f"{name}{_FILE}")
        if path and f"{name}{_FILE}" not in known:
            try:
                values[field] = _held_by(name, path)
            except ValueError as error:
                problems.append(str(error))
    try:
        return model(**values), problems
    except ValidationError as error:
        return None, [_sentence(prefix, problem) for problem in error.errors()] + problems


def _held_by(name: str, path: str) -> str:
    """Return what a file says of a setting, less a line's end. Raises ValueError, with nothing of what it holds."""
    if os.environ.get(name):
        raise ValueError(f"{name} and {name}{_FILE} are both set; leave one out")
    try:
        with open(path, "rb") as file:
            held = file.read(_MAX_FILE_BYTES + 1)
        text = held.decode()
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is no text"
        raise ValueError(f"{name}{_FILE} cannot be read ({why})") from None
    if len(held) > _MAX_FILE_BYTES:
        raise ValueError(f"{name}{_FILE} is longer than {_MAX_FILE_BYTES} bytes")
    return text.rstrip("\r\n")


def _message(problems: list[str]) -> str:
    return (
        "settings cannot be used: "
        + "; ".join(problems)
        + ". For a stack on this machine run `gradcam up`, then `source .gradcam/env`"
    )


def _sentence(prefix: str, problem: Mapping[str, Any]) -> str:
    name = f"{prefix}{problem['loc'][0]}".upper()
    if problem["type"] == "missing":
        return f"{name} is missing"
    # The value itself is left out: it may hold a password.
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"{name} {text}" if text.startswith(("must", "is ", "has ", "names ")) else f"{name} is wrong ({text})"


def _misspelt(names: Mapping[str, str], prefix: str, known: list[str], others: tuple[str, ...]) -> list[str]:
    problems = []
    for name in sorted(names):
        if not name.startswith(prefix) or name in known or name.startswith(others):
            continue
        near = difflib.get_close_matches(name[:NAME_CHARS], known, n=1)
        problems.append(f"{shown(name)} is not a setting" + (f" (did you mean {near[0]}?)" if near else ""))
    return problems
