"""A Redis address as a user writes it, read once and strictly, for both clients that connect by it.

redis-py and kombu each read addresses in their own way, and take what stands behind an unquoted `#`, `?` or `/` of a
password for something else: a part of it becomes a host that is looked up and shown. Here an address is read whole or
refused in a sentence which shows nothing of it.

| parameter                       | is                                                                        |
|---------------------------------|---------------------------------------------------------------------------|
| `db`                            | the database, in place of the path                                        |
| `socket_timeout`                | seconds, 3 or more: a submission's wait for Redis' disk takes 2           |
| `socket_connect_timeout`        | seconds, more than 0                                                      |
| `socket_keepalive`              | `true` or `false`                                                         |
| `health_check_interval`         | seconds, a whole number                                                   |
| `client_name`                   | what `CLIENT LIST` shows                                                  |
| `ssl_ca_certs`, `ssl_ca_path`, `ssl_certfile`, `ssl_keyfile` | files (a folder) of this machine, with `rediss://`|
| `ssl_cert_reqs`                 | `required`, `optional` or `none`, with `rediss://`                        |
| `ssl_check_hostname`            | `true` or `false`, with `rediss://`                                       |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from ssl import VerifyMode
from typing import Any, Final
from urllib.parse import quote, unquote, unquote_plus

MUST: Final = "must look like redis://[[user]:password@]host[:port][/0] (or rediss:// for TLS)"
#: What can stand in a host: a name, an IPv4 address, or an IPv6 address in brackets.
_HOST: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")
_SCHEME: Final = re.compile(r"([A-Za-z0-9+.-]+)://", re.ASCII)
_QUOTE: Final = (
    "has a password or user with one of the characters @ # / ? or white space in it: write them as "
    "%40 %23 %2F %3F %20 (and % as %25)"
)
_SHORTEST_S: Final = 3.0
_PORTS: Final = 65_535


def _number(least: float, what: str) -> Callable[[str], float]:
    def read(value: str) -> float:
        number = float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) else -1.0
        if number < least:
            raise ValueError(f"must be {what}")
        return number

    return read


def _whole(value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise ValueError("must be a whole number")
    return int(value)


def _truth(value: str) -> bool:
    if value.lower() not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("must be true or false")
    return value.lower() in {"true", "1", "yes"}


def _name(value: str) -> str:
    if not re.fullmatch(r"[!-~]{1,100}", value):
        raise ValueError("must be up to 100 letters, digits and signs, without white space")
    return value


def _file(value: str) -> str:
    if not Path(value).is_file():
        raise ValueError("names a file that is not there")
    return value


def _folder(value: str) -> str:
    if not Path(value).is_dir():
        raise ValueError("names a folder that is not there")
    return value


def _certificate(value: str) -> VerifyMode:
    try:
        return VerifyMode[f"CERT_{value.upper().removeprefix('CERT_')}"]
    except KeyError:
        raise ValueError("must be required, optional or none") from None


_PARAMETERS: Final[dict[str, Callable[[str], Any]]] = {
    "db": _whole,
    "socket_timeout": _number(_SHORTEST_S, f"a number of seconds, {_SHORTEST_S:g} or more"),
    "socket_connect_timeout": _number(0.1, "a number of seconds, 0.1 or more"),
    "socket_keepalive": _truth,
    "health_check_interval": _whole,
    "client_name": _name,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_cert_reqs": _certificate,
    "ssl_check_hostname": _truth,
}


@dataclass(frozen=True)
class RedisUrl:
    """Where Redis is, and how it is connected to."""

    tls: bool
    host: str
    port: int = 6379
    database: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    #: Options of the connection, of the table above, less those of TLS.
    options: dict[str, Any] = field(default_factory=dict)
    #: Those of TLS, by their names in redis-py.
    ssl: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> RedisUrl:
        """Read an address.

        Raises:
            ValueError: It is not understood; says what it must be, and shows nothing of it.
        """
        scheme, rest = _split_scheme(text.strip())
        # A password that is not quoted ends what looks like the host: the last @ is behind it then.
        end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
        authority, behind = rest[:end], rest[end:]
        userinfo, _, place = authority.rpartition("@")
        if "@" in behind or "@" in userinfo or re.search(r"\s", userinfo):
            raise ValueError(_QUOTE)
        if "," in place or ";" in place:
            raise ValueError(f"names several hosts: Redis Cluster and Sentinel are not read, one primary is; it {MUST}")
        if (
            "#" in behind
            or (found := _HOST.fullmatch(place)) is None
            or int(found["port"] or 1) not in range(1, _PORTS + 1)
        ):
            raise ValueError(f"{MUST}; characters such as @ # / ? in the password are written %40 %23 %2F %3F")
        path, _, query = behind.partition("?")
        if not re.fullmatch(r"/?\d{0,9}/?", path):
            raise ValueError(f"{MUST}: the database behind the host is a number")
        parameters = _parameters(query, tls=scheme == "rediss")
        database, named = path.strip("/"), parameters.pop("db", None)
        if database and named is not None and int(database) != named:
            raise ValueError("names two databases, one behind the host and one as the parameter db")
        user, _, password = userinfo.partition(":")
        return cls(
            tls=scheme == "rediss",
            host=found["host"].strip("[]"),
            port=int(found["port"] or 6379),
            database=int(database or named or 0),
            user=unquote(user) or None,
            password=unquote(password) or None,
            options={name: value for name, value in parameters.items() if not name.startswith("ssl_")},
            ssl={name: value for name, value in parameters.items() if name.startswith("ssl_")},
        )

    @property
    def address(self) -> str:
        """Host and port, for messages: nothing of it is secret."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def unchecked(self) -> str | None:
        """What of the server's certificate is not looked at, in a sentence; None where all is, and without TLS."""
        if self.tls and self.ssl.get("ssl_cert_reqs") is VerifyMode.CERT_NONE:
            what = "nobody checks that this Redis is the right one: ssl_cert_reqs=none"
        elif self.tls and self.ssl.get("ssl_check_hostname") is False:
            what = "any server with a certificate of these authorities will do for Redis: ssl_check_hostname=false"
        else:
            return None
        return f"{what} stands in GRADCAM_REDIS_URL; leave it out, and name the authority's file by ssl_ca_certs"

    @property
    def plain(self) -> str:
        """The address without its parameters, password included: kombu would read them in its own way."""
        who = quote(self.user or "", safe="")
        who += f":{quote(self.password, safe='')}" if self.password is not None else ""
        return f"{'rediss' if self.tls else 'redis'}://{who}{'@' if who else ''}{self.address}/{self.database}"


def _split_scheme(text: str) -> tuple[str, str]:
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if "sentinel" in scheme:
        raise ValueError(
            "is the address of a Sentinel, which is not read: give the primary's own address, or that of a proxy or a "
            f"name that follows it; it {MUST}"
        )
    if scheme in {"unix", "redis+socket", "socket"}:
        raise ValueError(f"is the address of a Unix socket, which is not read: it {MUST}")
    if found is None or scheme not in {"redis", "rediss"}:
        raise ValueError(MUST)
    return scheme, text[found.end() :]


def _parameters(query: str, *, tls: bool) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        reader = _PARAMETERS.get(name)
        if reader is None:
            # What was typed is left out: it may be half of a password.
            raise ValueError(f"has a parameter that is not read; those that are: {', '.join(_PARAMETERS)}")
        if name.startswith("ssl_") and not tls:
            raise ValueError(f"has the parameter {name}, which goes with rediss://")
        if name in parameters:
            raise ValueError(f"has the parameter {name} twice")
        try:
            parameters[name] = reader(unquote_plus(value))
        except ValueError as error:
            raise ValueError(f"has the parameter {name}, which {error}") from None
    return parameters
