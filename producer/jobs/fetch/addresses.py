r"""Which addresses an image or a weights file may have.

    address                                   is
    ────────────────────────────────────────  ─────────────────────────────────────────────────────────────────────
    s3://bucket/folder/a%20b?.jpg             taken literally: an object's key may hold any of these characters
    s3://bucket, s3://bucket/, s3:///key      refused: no key, no key, no bucket
    s3://arn:aws:s3:…/key                     refused: an address never chooses an S3 endpoint
    https://host/a b.jpg?size=2#top           allowed; quoted where needed, without the fragment
    http://user:word@host/a.jpg               refused, and the user and the word are never shown
    http://straße.example/a.jpg, HOST., Host  allowed: the name goes on in lower case, as browsers write it (UTS 46:
                                              xn--strae-oqa.example), without the last dot
    http://☕.example/a.jpg                    allowed, as in browsers, although IDNA 2008 itself has no symbols
    http://127.1/, 0x7f.1, 0177.0.0.1, 2130706433   refused: an IPv4 address has four plain decimal numbers
    http://[fe80::1%eth0]/                    refused: an address with a zone means something else on every machine
    http://10.0.0.7/, http://[::1]/, a name that leads there   refused, unless in GRADCAM_WORKER_ALLOW_HOSTS
    http://[::ffff:8.8.8.8]/, 6to4, Teredo    refused: disguises of IPv4 that no picture server needs
    http://[64:ff9b::808:808]/                judged by the IPv4 address inside: IPv6-only networks use NAT64
    file:///data/a%20b.jpg, file://localhost/…  percent-decoded; under GRADCAM_WORKER_FILE_ROOTS only, links resolved
    file://host/a.jpg, file:a.jpg             refused: another machine's file, a relative path
    a.jpg, C:\a.jpg, ftp:, data:, gopher:      refused: not one of the four schemes
    any with a control character, or longer than 8192 characters   refused

There is no I/O here but resolving names and paths. Whatever is shown of an address went through `redact`.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import quote, unquote, unquote_plus, unquote_to_bytes

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from producer.jobs.model import names
from producer.jobs.model.errors import FetchError

MAX_URI_CHARS: Final = 8192
#: The settings a refusal names, so that whoever runs the workers knows what to change.
ALLOW_HOSTS_SETTING: Final = "GRADCAM_WORKER_ALLOW_HOSTS"
FILE_ROOTS_SETTING: Final = "GRADCAM_WORKER_FILE_ROOTS"

#: Answers like `socket.getaddrinfo`; tests bring their own.
Resolve: TypeAlias = Callable[[str, int], Sequence[tuple[Any, ...]]]

_IP: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

_SUPPORTED: Final = "an address begins with s3://, http://, https:// or file://"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_SHOWN_CHARS: Final = 200
_MAX_KEY_BYTES: Final = 1024
_MAX_PORT: Final = 65535
_MAX_HOST_CHARS: Final = 253
_MAX_STEM_CHARS: Final = 100
#: Network and kind come beside it in a file's name.
_MAX_STEM_BYTES: Final = 120
#: The zero-width joiners, which stand only where their neighbors' script needs them.
_JOINERS: Final = "\u200c\u200d"

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNDECODABLE: Final = re.compile(r"[\ud800-\udfff]")
# Marks that reorder text would let one address look like another in a log.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HTTP: Final = re.compile(r"([^/?#]*)([^?#]*)(\?[^#]*)?")
_AUTHORITY: Final = re.compile(r"(\[[^\[\]@]*\]|[^:\[\]@]*)(?::([0-9]{0,5}))?")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What resolvers read as a number (WHATWG URL, "ends in a number"): 127.1, 0x7f.1, 0177.0.0.1, 2130706433.
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE)

_USER_AGENT: Final = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")
_EXTENSION: Final = re.compile(r"(?<=.)\.[A-Za-z0-9]{1,8}\Z", re.DOTALL)
_SECRET_NAME: Final = re.compile(
    r"sig|token|secret|pass|pwd|auth|cred|key|session|policy|code|jwt|x-amz-|x-goog-", re.IGNORECASE
)
_SECRET_CHARS: Final = 32  # an unnamed value this long is more likely a token than a size or a page number


# --- addresses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class S3Address:
    """An object; its key is literal, neither quoted nor decoded."""

    bucket: str
    key: str
    #: The address as it may be shown: redacted and shortened.
    shown: str
    scheme: Literal["s3"] = "s3"


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """A page of a web server."""

    scheme: Literal["http", "https"]
    #: In lower case, as IDNA, without brackets or a last dot.
    host: str
    port: int
    #: Path and query, quoted, as the request line wants them; begins with a slash.
    target: str
    #: The address as it may be shown: redacted and shortened.
    shown: str

    @property
    def netloc(self) -> str:
        """Host and port as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address, secrets included: to be joined with a redirect, never to be shown."""
        return f"{self.scheme}://{self.netloc}{self.target}"


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A file of the worker's machine; absolute, not yet resolved."""

    path: Path
    #: The address as it may be shown: redacted and shortened.
    shown: str
    scheme: Literal["file"] = "file"


Address: TypeAlias = S3Address | HttpAddress | FileAddress


def parse(uri: str) -> Address:
    """Read an address and refuse what can never be fetched; nothing is looked up.

    Args:
        uri: What the user gave.

    Returns:
        One of `S3Address`, `HttpAddress` and `FileAddress`.

    Raises:
        FetchError: One sentence that says why, showing the address without its secrets.
    """
    if len(uri) > MAX_URI_CHARS:
        raise FetchError(f"an address of {len(uri):,} characters is refused: the longest has {MAX_URI_CHARS:,}")
    shown = _shown(uri)
    try:
        return _parse(uri, shown)
    except ValueError as error:
        raise FetchError(f"{shown} is refused: {error}") from None


def _parse(uri: str, shown: str) -> Address:
    if not uri.strip():
        raise ValueError(f"it is empty; {_SUPPORTED}")
    if _CONTROL.search(uri) or _UNDECODABLE.search(uri):
        raise ValueError("it holds control characters")
    match = _SCHEME.fullmatch(uri)
    scheme, rest = (match[1].lower(), match[2]) if match else ("", "")
    if scheme == "s3":
        return _parse_s3(rest, shown)
    if scheme == "http":
        return _parse_http("http", rest, shown)
    if scheme == "https":
        return _parse_http("https", rest, shown)
    if scheme == "file":
        return _parse_file(rest, shown)
    raise ValueError(_SUPPORTED)


def _parse_s3(rest: str, shown: str) -> S3Address:
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise ValueError("it names no bucket; an object is s3://bucket/key")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("its bucket's name is not one of 3 to 63 letters, digits, dots, dashes and underscores")
    if not key:
        raise ValueError("it names no key; an object is s3://bucket/key")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise ValueError(f"its key is longer than {_MAX_KEY_BYTES:,} bytes")
    return S3Address(bucket, key, shown)


def _parse_http(scheme: Literal["http", "https"], rest: str, shown: str) -> HttpAddress:
    match = _HTTP.match(rest)
    authority, path, query = (match[1], match[2], match[3] or "") if match else ("", "", "")
    if "@" in authority:
        raise ValueError("it holds a user name or a password, which would end in logs and results")
    parts = _AUTHORITY.fullmatch(authority)
    if not parts:
        raise ValueError("its host or port cannot be read")
    port = int(parts[2]) if parts[2] else _DEFAULT_PORTS[scheme]
    if not 0 < port <= _MAX_PORT:
        raise ValueError(f"its port is not between 1 and {_MAX_PORT}")
    target = quote((path or "/") + query, safe="/?%:@!$&'()*+,;=~[]")
    return HttpAddress(scheme, _host(parts[1]), port, target, shown)


def _parse_file(rest: str, shown: str) -> FileAddress:
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        raise ValueError("it names a file of another machine; a file is file:///folder/name")
    if not slash or not path:
        raise ValueError("it names no file; a file is file:///folder/name")
    decoded = os.fsdecode(unquote_to_bytes("/" + path))
    if _CONTROL.search(decoded):
        raise ValueError("it holds control characters")
    return FileAddress(Path(decoded), shown)


def _host(text: str) -> str:
    """Bring a host into its one form: an IP address, or a name in lower case, as IDNA, without the last dot.

    Raises:
        ValueError: The rest of a sentence about the address.
    """
    if text.startswith("[") or ":" in text:
        return _ipv6(text.removeprefix("[").removesuffix("]"))
    # Wide digits and dots become plain ones here, so the number rule below sees them.
    name = (text if text.isascii() else _ascii_name(text)).lower().removesuffix(".")
    if not name:
        raise ValueError("it names no host")
    if _ENDS_IN_NUMBER.fullmatch(name):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise ValueError("its host is a number that is no plain IPv4 address like 192.0.2.1") from None
    if len(name) > _MAX_HOST_CHARS or not _HOST_NAME.fullmatch(name):
        raise ValueError("its host is no name that can be looked up")
    return name


def _ascii_name(name: str) -> str:
    """Write a name with other letters as browsers do: by UTS 46, not transitional.

    Raises:
        ValueError: The rest of a sentence about the address.
    """
    import idna  # its tables take milliseconds, and nearly every address does without

    # Writing a name in ASCII takes time by the square of its length.
    if len(name) <= _MAX_HOST_CHARS:
        with suppress(ValueError):
            mapped = idna.uts46_remap(name, std3_rules=False)
            return ".".join(label if label.isascii() else _ascii_label(label) for label in mapped.split("."))
    raise ValueError("its host is no name that can be looked up")


def _ascii_label(label: str) -> str:
    """What UTS 46 asks of a label; `idna.alabel` also refuses symbols such as emoji, which browsers do not."""
    import idna

    idna.check_initial_combiner(label)
    idna.check_bidi(label)
    if not all(idna.valid_contextj(label, at) for at, char in enumerate(label) if char in _JOINERS):
        raise ValueError("a joiner stands where it joins nothing")
    return "xn--" + label.encode("punycode").decode()


def _ipv6(text: str) -> str:
    if "%" in text:
        raise ValueError("its host has a zone, which means something else on every machine")
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise ValueError("its host is no IPv6 address") from None


# --- showing and naming ----------------------------------------------------------------------------------------------


def redact(uri: str) -> str:
    """Return an address as logs and results may hold it.

    User names and passwords, query values that are or look like secrets, the fragment of a web address, control
    characters and marks that reorder text are replaced or cut; any string is accepted, also one that `parse` refuses.
    """
    match = _SCHEME.fullmatch(uri)
    scheme, rest = (match[1] + "://", match[2]) if match else ("", uri)
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in authority:
        rest = "***@" + authority.rpartition("@")[2] + rest[len(authority) :]
    elif "@" in rest and not (scheme and _AUTHORITY.fullmatch(authority)):
        # A password with a slash in it, or no scheme at all: where the secret ends can only be guessed.
        rest = "***@" + rest.rpartition("@")[2]
    if scheme.lower() in ("http://", "https://"):
        rest = rest.partition("#")[0]
    path, mark, query = rest.partition("?")
    hidden = "".join(_redact_parameter(part) for part in re.split(r"([&;])", query))
    return _UNPRINTABLE.sub("?", scheme + path + mark + hidden)


def _redact_parameter(text: str) -> str:
    name, equals, value = text.partition("=")
    # An address inside a parameter has secrets of its own: url=https%3A%2F%2Fuser:word@host%2F%3Ftoken%3Dabc.
    decoded = unquote_plus(text)
    secret = "://" in decoded and "@" in decoded
    if not equals:
        return "***" if secret or len(text) >= _SECRET_CHARS else text
    secret = secret or len(value) >= _SECRET_CHARS or bool(_SECRET_NAME.search(decoded.rpartition("=")[0]))
    return f"{name}=***" if secret else text


def _shown(uri: str) -> str:
    text = redact(uri)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"


def stem(uri: str) -> str:
    """Return the file-name stem of an address, safe in any file or object name.

    The last part of the path is percent-decoded, loses its extension, and is made safe (`jobs/model/names.py`).
    It has 1 to 100 characters, or 120 bytes of UTF-8, and is `image` where nothing is left.
    """
    match = _SCHEME.fullmatch(uri)
    path = match[2].partition("/")[2] if match else uri
    if match and match[1].lower() in ("http", "https"):
        path = re.split(r"[?#]", match[2], maxsplit=1)[0].partition("/")[2]
    name = unquote(path.rstrip("/").rpartition("/")[2]).lstrip(".")
    name = _EXTENSION.sub("", name).strip(".")
    if not name:
        return "image"
    safe = names.safe(name)
    return names.beginning(safe, _MAX_STEM_CHARS if safe.isascii() else _MAX_STEM_BYTES).rstrip(".")


# --- what a worker may reach -----------------------------------------------------------------------------------------


def checked_user_agent(text: str) -> str:
    """Check that a header can hold this, in a line of its own. Raises ValueError."""
    if not _USER_AGENT.fullmatch(text):
        raise ValueError("must be a line of 1 to 256 letters, digits and marks of ASCII")
    return text


class FetchPolicy(BaseModel):
    """What a worker may fetch, and how much of it; set by whoever runs the worker, never by a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Private hosts that may be fetched from: host names, `*.suffix` for every host below it, or networks (CIDR).
    #: A name opens loopback, private and CGNAT addresses; cloud metadata and all else need their network listed.
    allow_hosts: tuple[str, ...] = ()
    #: Folders whose files `file://` may name; none: no file at all.
    file_roots: tuple[Path, ...] = ()
    #: The largest body taken.
    max_bytes: int = Field(default=64 * 2**20, gt=0)
    #: The longest one fetch may take, redirects and retries included.
    total_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    #: How many redirects are followed.
    max_redirects: int = Field(default=3, ge=0)
    #: What web servers are told of who asks.
    user_agent: Annotated[str, AfterValidator(checked_user_agent)] = "gradcam-queue"

    @field_validator("allow_hosts")
    @classmethod
    def _hosts_can_be_matched(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_allow_entry(entry) for entry in entries)

    @field_validator("file_roots")
    @classmethod
    def _roots_are_absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"{root} is not an absolute path")
        return roots


def _allow_entry(entry: str) -> str:
    text = entry.strip()
    with suppress(ValueError):
        return str(ip_network(text.removeprefix("[").removesuffix("]")))
    try:
        return "*." + _host(text[2:]) if text.startswith("*.") else _host(text)
    except ValueError:
        raise ValueError(f"{entry!r} is no host name, no *.suffix and no network like 10.0.0.0/8") from None


_FORBIDDEN: Final[dict[str, tuple[_Network, ...]]] = {
    kind: tuple(ip_network(network) for network in networks.split())
    for kind, networks in {
        # The first three may be opened by a host's name; the others by their network only.
        "loopback": "127.0.0.0/8 ::1/128",
        "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
        "shared (CGNAT)": "100.64.0.0/10",
        "unspecified": "0.0.0.0/8 ::/128",
        "link-local": "169.254.0.0/16 fe80::/10",
        "site-local": "fec0::/10",
        "multicast": "224.0.0.0/4 ff00::/8",
        # Documentation, benchmarks, 6to4 relays, Teredo (in 2001::/23), 6to4 (2002::/16), mapped IPv4 (::ffff:0:0/96).
        "reserved": "192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4"
        " ::ffff:0:0/96 2001::/23 2001:db8::/32 2002::/16 3fff::/20",
    }.items()
}
_OPENED_BY_NAME: Final = frozenset({"loopback", "private", "shared (CGNAT)"})
# Credentials of the machine itself; a wildcard such as *.internal must not open them (metadata.google.internal).
_METADATA: Final = frozenset(map(ip_address, ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))
_NAT64: Final = IPv6Network("64:ff9b::/96")
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")


def checked_addresses(host: str, port: int, policy: FetchPolicy, resolve: Resolve = socket.getaddrinfo) -> list[str]:
    """Resolve a host once and return the IP addresses a connection may go to.

    The caller connects to these addresses and never resolves the name again, so a name server that changes its answer
    gains nothing. One forbidden address refuses the host: a public name with a private address beside it is an attack
    or a mistake.

    Args:
        host: A name or an IP address, with or without brackets.
        port: Goes to the resolver.
        policy: Which private hosts are open.
        resolve: Answers like `socket.getaddrinfo`, which has a time limit of its own and none of ours.

    Returns:
        IP addresses in the resolver's order, without repetition; never empty.

    Raises:
        FetchError: The host is forbidden, unreadable or unknown.
    """
    try:
        name = _host(host)
    except ValueError as error:
        raise FetchError(f"the address is refused: {error}") from None
    found = _literal(name) or _resolved(name, port, resolve)
    for address in found:
        kind = _forbidden_kind(address)
        if kind and not _is_open(name, address, kind, policy):
            raise FetchError(
                f"the host {name} is refused: its address is {kind}, and only hosts in {ALLOW_HOSTS_SETTING} may have"
                " such a one"
            )
    return [str(address) for address in found]


def _literal(name: str) -> list[_IP]:
    try:
        return [ip_address(name)]
    except ValueError:
        return []


def _resolved(name: str, port: int, resolve: Resolve) -> list[_IP]:
    try:
        found = [ip_address(answer[4][0]) for answer in resolve(name, port)]
    except (OSError, ValueError) as error:
        raise FetchError(f"the host {name} is not known") from error
    if not found:
        raise FetchError(f"the host {name} is not known")
    return list(dict.fromkeys(found))


def _forbidden_kind(address: _IP) -> str | None:
    """Name what kind of forbidden address this is; None where it is an ordinary one of the internet."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return _forbidden_kind(IPv4Address(int(address) & 0xFFFFFFFF))
    for kind, networks in _FORBIDDEN.items():
        if any(address in network for network in networks):
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return "reserved"
    return None if address.is_global else "reserved"


def _is_open(name: str, address: _IP, kind: str, policy: FetchPolicy) -> bool:
    networks, names = _allowed(policy.allow_hosts)
    if any(address in network for network in networks):
        return True
    if kind not in _OPENED_BY_NAME or address in _METADATA or address in _NAT64:
        return False
    return any(name.endswith(entry[1:]) if entry.startswith("*.") else name == entry for entry in names)


@lru_cache(maxsize=16)
def _allowed(entries: tuple[str, ...]) -> tuple[tuple[_Network, ...], tuple[str, ...]]:
    networks = tuple(ip_network(entry) for entry in entries if "/" in entry)
    return networks, tuple(entry for entry in entries if "/" not in entry)


def checked_file(path: Path, policy: FetchPolicy) -> Path:
    """Resolve a path, links and `..` included, and return it if it is a regular file under one of the roots.

    Outside the roots it is not said whether there is such a file.

    Raises:
        FetchError: No roots are set, the path leads outside them, or it is no regular file that can be looked at.
    """
    shown = _UNPRINTABLE.sub("?", str(path))
    if not policy.file_roots:
        raise FetchError(f"the file {shown} is refused: this worker reads no files, as {FILE_ROOTS_SETTING} is not set")
    resolved = Path(os.path.realpath(path))
    if not any(resolved.is_relative_to(os.path.realpath(root)) for root in policy.file_roots):
        raise FetchError(f"the file {shown} is refused: it is not under the folders of {FILE_ROOTS_SETTING}")
    try:
        mode = resolved.lstat().st_mode
    except FileNotFoundError:
        raise FetchError(f"there is no file {shown}") from None
    except OSError as error:
        raise FetchError(f"the file {shown} cannot be read: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISREG(mode):
        raise FetchError(f"the file {shown} is refused: it is a folder, a device or a pipe, not a regular file")
    return resolved
