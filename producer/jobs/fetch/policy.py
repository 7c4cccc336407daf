"""What a worker may fetch: which hosts and folders, set by whoever runs it; names and paths are resolved here."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from producer.jobs.fetch.addresses import host_name
from producer.jobs.model.errors import FetchError
from producer.jobs.model.redaction import UNPRINTABLE

#: The settings a refusal names, so that whoever runs the workers knows what to change.
ALLOW_HOSTS_SETTING: Final = "GRADCAM_WORKER_ALLOW_HOSTS"
FILE_ROOTS_SETTING: Final = "GRADCAM_WORKER_FILE_ROOTS"
#: Answers like `socket.getaddrinfo`; tests bring their own.
Resolve: TypeAlias = Callable[[str, int], Sequence[tuple[Any, ...]]]
_IP: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network
_USER_AGENT: Final = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")


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
        return "*." + host_name(text[2:]) if text.startswith("*.") else host_name(text)
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
        name = host_name(host)
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
    shown = UNPRINTABLE.sub("?", str(path))
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
