"""What an operator's lists of hosts, buckets and folders may hold, and what an entry of them matches.

entry of hosts                      opens
──────────────────────────────────  ───────────────────────────────────────────────────────────────────────
images.internal, *.internal         these names on ports 80 and 443, also where they lead to private addresses
images.internal:8080                that port of that name, and no other
10.0.0.0/8, 127.0.0.1, [::1]        what has these addresses, on ports 80 and 443
10.0.0.0/8:8080, [::1]:9000         the same on that port
127.0.0.1:*                         the same on every port
localhost                           also loopback, as any entry that is an address or a network with it

entry of buckets                    opens
──────────────────────────────────  ───────────────────────────────────────────────────────────────────────
photos                              all of that bucket, but not where the service keeps its own objects
photos/2026/                        what lies under it
team-*, team-*/raw/                 the same of each bucket of such a name
*                                   every bucket that the credentials reach
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Final, TypeAlias

from producer.jobs.fetch.addresses import host_name

IP: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

#: The ports of the web, which need no entry.
WEB_PORTS: Final = frozenset({80, 443})
_MAX_PORT: Final = 65535
_HOST_AND_PORT: Final = re.compile(r"(.*?)(?::(\*|[0-9]{1,5}))?", re.DOTALL)
_BUCKET: Final = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._*-]{0,62}")
#: Folders in which a machine keeps what it is, and not what is shown to others; `/dev/shm` holds files.
_SYSTEM_FOLDERS: Final = ("/proc", "/sys", "/dev", "/etc", "/boot")
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - compared, not written to


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One entry of the hosts that may be reached."""

    #: A name, or `*.suffix`; empty where it is a network.
    name: str
    network: Network | None
    #: None: those of the web; empty: every one.
    ports: frozenset[int] | None

    def takes(self, port: int) -> bool:
        """Whether it opens this port."""
        return port in WEB_PORTS if self.ports is None else not self.ports or port in self.ports

    def holds(self, address: IP) -> bool:
        """Whether it is a network with this address, or the address itself."""
        return self.network is not None and address in self.network

    def is_called(self, name: str) -> bool:
        """Whether it is this host's name, or a pattern of it."""
        return name.endswith(self.name[1:]) if self.name.startswith("*.") else bool(self.name) and name == self.name

    def __str__(self) -> str:
        """Write it in its one form."""
        text = self.name or str(self.network)
        if self.ports is None:
            return text
        port = "*" if not self.ports else min(self.ports)
        return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """One entry of the buckets that may be read."""

    #: A name, or a pattern with `*`.
    bucket: str
    #: Empty, or ends with a slash.
    prefix: str

    def holds(self, bucket: str, key: str) -> bool:
        """Whether an object lies under it."""
        return fnmatchcase(bucket, self.bucket) and key.startswith(self.prefix)

    def __str__(self) -> str:
        """Write it in its one form."""
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket


def checked_hosts(entries: Iterable[str]) -> tuple[str, ...]:
    """Check that these are hosts, and bring each into its one form. Raises ValueError."""
    return tuple(str(_host(entry)) for entry in entries)


def checked_buckets(entries: Iterable[str]) -> tuple[str, ...]:
    """Check that these are buckets, or prefixes in buckets, and bring each into its one form. Raises ValueError."""
    return tuple(str(_bucket(entry)) for entry in entries)


def checked_roots(roots: Iterable[Path]) -> tuple[Path, ...]:
    """Check that these are folders whose files may be shown to others: not `/`, and nothing of the system's.

    Raises:
        ValueError: One is no absolute path, or is, or leads to, such a folder.
    """
    checked = tuple(roots)
    for root in checked:
        if not root.is_absolute():
            raise ValueError(f"must name folders from the root on: {str(root)!r} is not an absolute path")
        for path in (os.path.normpath(root), os.path.realpath(root)):
            if _is_systems(path):
                raise ValueError(
                    f"must not open {path}: name a folder of images; /, {', '.join(_SYSTEM_FOLDERS)} and what lies in "
                    f"these are refused, but {_SHARED_MEMORY}"
                )
    return checked


@lru_cache(maxsize=16)
def hosts(entries: tuple[str, ...]) -> tuple[HostEntry, ...]:
    """Read entries that were checked."""
    return tuple(map(_host, entries))


@lru_cache(maxsize=16)
def buckets(entries: tuple[str, ...]) -> tuple[BucketEntry, ...]:
    """Read entries that were checked."""
    return tuple(map(_bucket, entries))


def _host(entry: str) -> HostEntry:
    text = entry.strip()
    # An address of IPv6 without brackets has no port: `::1:9000` is one of its addresses.
    if (network := _network(text)) is not None:
        return HostEntry("", network, None)
    found = _HOST_AND_PORT.fullmatch(text)
    host, port = (found[1], found[2]) if found else (text, None)
    wrong = ValueError(
        f"must name hosts: {entry!r} is no host name, no *.suffix and no network like 10.0.0.0/8, alone or with a port "
        "as in images.internal:8080 or [::1]:9000, or :* for every port"
    )
    ports = None if port is None else frozenset() if port == "*" else frozenset({int(port)})
    if ports and not 0 < min(ports) <= _MAX_PORT:
        raise wrong
    if (network := _network(host)) is not None:
        return HostEntry("", network, ports)
    try:
        name = "*." + host_name(host[2:]) if host.startswith("*.") else host_name(host)
    except ValueError:
        raise wrong from None
    return HostEntry(name, None, ports)


def _network(text: str) -> Network | None:
    with suppress(ValueError):
        return ip_network(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
    return None


def _bucket(entry: str) -> BucketEntry:
    bucket, _, prefix = entry.strip().partition("/")
    parts = prefix.removesuffix("/").split("/") if prefix else []
    if not _BUCKET.fullmatch(bucket) or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(
            f"must name buckets: {entry!r} is neither a bucket, with * for any letters, nor a prefix in one like "
            "photos/2026/"
        )
    # `photos/2026` means what lies in it, not what is called `photos/2026-private`.
    return BucketEntry(bucket, "".join(f"{part}/" for part in parts))


def _is_systems(path: str) -> bool:
    def within(folder: str) -> bool:
        return path == folder or path.startswith(folder + "/")

    return path in {"/", "//"} or (any(map(within, _SYSTEM_FOLDERS)) and not within(_SHARED_MEMORY))
