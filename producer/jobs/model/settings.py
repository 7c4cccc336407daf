"""Where Redis and the object store are: read once from the environment, every problem reported at once.

The fields below are the variables `GRADCAM_*`. Credentials and region are `AWS_*`, as boto3 reads them. Each field may
be given as the path of a file that holds it, as `GRADCAM_REDIS_URL_FILE=/run/secrets/redis_url`: so secrets come into
containers. `GRADCAM_WORKER_*` are the worker's (`worker/settings.py`), `GRADCAM_TEST_*` the test suite's. `make docs`
writes the tables of docs/operations.md from the fields of both.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from producer.jobs.model.errors import SettingsError
from producer.jobs.model.redis_url import RedisUrl
from producer.jobs.model.setting_files import FILE, held_in_file
from producer.jobs.model.text import NAME_CHARS, shown

LogFormat = Literal["text", "json"]
TraceExport = Literal["off", "otlp"]


@dataclass(frozen=True)
class Setting:
    """What docs/operations.md says of a setting beside its description and its default."""

    #: What holds where nothing is given, if the default does not say so.
    absent: str = ""
    #: Whether nobody sets it but the launcher, for each process that it starts.
    of_launcher: bool = False


_Model = TypeVar("_Model", bound=BaseSettings)
_Other = TypeVar("_Other", bound=BaseSettings)

_MISSING = " is missing"

#: Names that others read; they are not misspelt ones of ours.
_OTHERS = ("GRADCAM_WORKER_", "GRADCAM_TEST_")


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

    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        description="`redis://[[user]:password@]host[:port][/0]`, `rediss://` for TLS; parameters: [below](#redis)"
    )
    s3_bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = Field(
        description="bucket of pictures, manifests and uploads"
    )
    s3_endpoint_url: Annotated[str | None, AfterValidator(_http_url), Setting(absent="AWS")] = Field(
        default=None, description="an S3-compatible server"
    )
    s3_public_endpoint_url: Annotated[
        str | None, AfterValidator(_http_url), Setting(absent="`GRADCAM_S3_ENDPOINT_URL`")
    ] = Field(
        default=None,
        description="the same server as those outside reach it: presigned addresses begin with it. Of ours only "
        "`gradcam doctor` connects to it",
    )
    s3_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9!_.*'()/-]*$"), AfterValidator(_prefix)] = Field(
        default="gradcam", description="where in the bucket: all our keys begin with it"
    )
    allow_eviction: bool = Field(default=False, description="`true` uses a Redis that may drop jobs all the same")
    job_lifetime_days: Annotated[float, Field(gt=0, le=3650)] = Field(
        default=30.0, description="how long a finished job stays in Redis"
    )
    log: Annotated[LogFormat, BeforeValidator(_log_format), Setting(absent="`text`; in containers `json`")] = Field(
        default="text", description="`text` or `json`: how workers and `gradcam metrics` write [logs](#logs)"
    )
    traces: Annotated[TraceExport, BeforeValidator(_trace_export)] = Field(
        default="off",
        description="`otlp`: spans of submissions and chunks go to an OpenTelemetry collector "
        "([traces.md](traces.md)); `off`",
    )
    user: Annotated[str | None, Field(max_length=100), Setting(absent="user@host of the client")] = Field(
        default=None, description="who `gradcam history` says did something; 100 letters at most"
    )

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
    problems = _misspelt(os.environ, prefix, [*known, *(f"{name}{FILE}" for name in known)], others)
    values: dict[str, Any] = {}
    for name, field in known.items():
        if f"{name}{FILE}" in known:
            continue  # a setting of its own, which ends alike: GRADCAM_WORKER_DRAIN_FILE
        try:
            if (held := held_in_file(name)) is not None:
                values[field] = held
        except ValueError as error:
            problems.append(str(error))
    try:
        return model(**values), problems
    except ValidationError as error:
        return None, [_sentence(prefix, problem) for problem in error.errors()] + problems


def _message(problems: list[str]) -> str:
    # Only who has not said where Redis and the store are may have none.
    hint = ". For a stack on this machine run `gradcam up`, then `source .gradcam/env`"
    return f"settings cannot be used: {'; '.join(problems)}" + (hint if any(map(_is_missing, problems)) else "")


def _is_missing(problem: str) -> bool:
    return problem.endswith(_MISSING)


def _sentence(prefix: str, problem: Mapping[str, Any]) -> str:
    name = f"{prefix}{problem['loc'][0]}".upper()
    if problem["type"] == "missing":
        return f"{name}{_MISSING}"
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
