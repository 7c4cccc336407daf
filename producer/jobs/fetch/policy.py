"""What a worker may fetch: which hosts, buckets and folders, set by whoever runs it; names and paths are resolved here.

Whoever submits a job is told no more of the inner network than that a host is refused, or not known: `FetchError.why`
has the reason, for the worker's log.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from producer.jobs.fetch import allow_lists
from producer.jobs.fetch.addresses import S3Address, host_name
from producer.jobs.fetch.allow_lists import IP, WEB_PORTS, Network
from producer.jobs.model import keys
from producer.jobs.model.errors import FetchError
from producer.jobs.model.text import shown

#: The settings a refusal names, so that whoever runs the workers knows what to change.
ALLOW_HOSTS_SETTING: Final = "GRADCAM_WORKER_ALLOW_HOSTS"
ALLOW_BUCKETS_SETTING: Final = "GRADCAM_WORKER_ALLOW_BUCKETS"
FILE_ROOTS_SETTING: Final = "GRADCAM_WORKER_FILE_ROOTS"
#: Answers like `socket.getaddrinfo`; tests bring their own.
Resolve: TypeAlias = Callable[[str, int], Sequence[tuple[Any, ...]]]
_USER_AGENT: Final = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")


def checked_user_agent(text: str) -> str:
    """Check that a header can hold this, in a line of its own. Raises ValueError."""
    if not _USER_AGENT.fullmatch(text):
        raise ValueError("must be a line of 1 to 256 letters, digits and marks of ASCII")
    return text


class FetchPolicy(BaseModel):
    """What a worker may fetch, and how much of it; set by whoever runs the worker, never by a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Private hosts, and ports beside 80 and 443, that may be fetched from: `allow_lists.py` has the forms. A name
    #: opens private and CGNAT addresses; loopback, cloud metadata and all else need their network listed.
    allow_hosts: Annotated[tuple[str, ...], AfterValidator(allow_lists.checked_hosts)] = ()
    #: Buckets, and prefixes in buckets, that may be read; none: any that the credentials reach.
    allow_buckets: Annotated[tuple[str, ...], AfterValidator(allow_lists.checked_buckets)] = ()
    #: Bucket and prefix where the service keeps its own objects; None: nowhere.
    own_place: tuple[str, str] | None = None
    #: Folders whose files `file://` may name; none: no file at all.
    file_roots: Annotated[tuple[Path, ...], AfterValidator(allow_lists.checked_roots)] = ()
    #: The largest body taken.
    max_bytes: int = Field(default=64 * 2**20, gt=0)
    #: The longest one fetch may take, redirects and retries included.
    total_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    #: So many bytes a second must come, counted over so many seconds; 0 asks for nothing.
    low_speed_limit: float = Field(default=1000.0, ge=0, allow_inf_nan=False)
    low_speed_time_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    #: How many redirects are followed.
    max_redirects: int = Field(default=3, ge=0)
    #: What web servers are told of who asks.
    user_agent: Annotated[str, AfterValidator(checked_user_agent)] = "gradcam-queue"

    def warnings(self) -> tuple[str, ...]:
        """Say what is open that whoever runs the worker may not know of."""
        found = []
        if not self.allow_buckets:
            found.append(
                "Jobs may name any bucket that the workers' credentials reach: set GRADCAM_WORKER_ALLOW_BUCKETS to the "
                "buckets of images, or to * if that is meant"
            )
        entries = allow_lists.hosts(self.allow_hosts)
        if any(entry.holds(address) for entry in entries for address in _METADATA):
            found.append(
                "GRADCAM_WORKER_ALLOW_HOSTS opens addresses where clouds keep the credentials of their machines"
            )
        return tuple(found)


_FORBIDDEN: Final[dict[str, tuple[Network, ...]]] = {
    kind: tuple(ip_network(network) for network in networks.split())
    for kind, networks in {
        # Private ones may be opened by a host's name, loopback by that of localhost; the others by their network only.
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
_OPENED_BY_NAME: Final = frozenset({"private", "shared (CGNAT)"})
# Credentials of the machine itself; a wildcard such as *.internal must not open them (metadata.google.internal).
_METADATA: Final = frozenset(
    map(ip_address, ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"))
)
#: What uploaded weights are called under the place of the service.
_UPLOADED_WEIGHTS: Final = re.compile(r"(?:.*/)?weights/[0-9a-f]{64}", re.DOTALL)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")


def checked_addresses(host: str, port: int, policy: FetchPolicy, resolve: Resolve = socket.getaddrinfo) -> list[str]:
    """Resolve a host once and return the IP addresses a connection may go to.

    The caller connects to these addresses and never resolves the name again, so a name server that changes its answer
    gains nothing. One forbidden address refuses the host: a public name with a private address beside it is an attack
    or a mistake.

    Args:
        host: A name or an IP address, with or without brackets.
        port: Where the connection is to go; also for the resolver.
        policy: Which private hosts are open, and which ports.
        resolve: Answers like `socket.getaddrinfo`, which has a time limit of its own and none of ours.

    Returns:
        IP addresses in the resolver's order, without repetition; never empty.

    Raises:
        FetchError: The host is forbidden, unreadable or unknown; its `why` says which.
    """
    try:
        name = host_name(host)
    except ValueError as error:
        raise FetchError(f"the address is refused: {error}") from None
    entries = allow_lists.hosts(policy.allow_hosts)
    if port not in WEB_PORTS and not any(entry.takes(port) for entry in entries):
        raise _refused(name, f"port {port} is neither 80 nor 443, and no entry names it")
    found = _literal(name) or _resolved(name, port, resolve)
    for address in found:
        if why := _closed(name, address, port, policy):
            raise _refused(name, why)
    return [str(address) for address in found]


def _refused(name: str, why: str) -> FetchError:
    """The one sentence for what is refused and what is not known: the difference would map the inner network."""
    return FetchError(
        f"the host {name} is not known, or is refused: private hosts, and ports other than 80 and 443, must be in "
        f"{ALLOW_HOSTS_SETTING}; the worker's log has the reason",
        why=f"the host {name}: {why}",
    )


def _literal(name: str) -> list[IP]:
    try:
        return [ip_address(name)]
    except ValueError:
        return []


def _resolved(name: str, port: int, resolve: Resolve) -> list[IP]:
    try:
        found = [ip_address(answer[4][0]) for answer in resolve(name, port)]
    except (OSError, ValueError) as error:
        raise _refused(name, "the name is not known") from error
    if not found:
        raise _refused(name, "the name is not known")
    return list(dict.fromkeys(found))


def is_inner(address: str) -> bool:
    """Whether an IP address is none of the internet: only an entry of the allowed hosts leads there."""
    return _forbidden_kind(ip_address(address)) is not None


def _forbidden_kind(address: IP) -> str | None:
    """Name what kind of forbidden address this is; None where it is an ordinary one of the internet."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return _forbidden_kind(IPv4Address(int(address) & 0xFFFFFFFF))
    for kind, networks in _FORBIDDEN.items():
        if any(address in network for network in networks):
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return "reserved"
    return None if address.is_global else "reserved"


def _closed(name: str, address: IP, port: int, policy: FetchPolicy) -> str | None:
    """Why a connection may not go there; None where it may."""
    kind = _forbidden_kind(address)
    if kind is None and port in WEB_PORTS:
        return None
    by_name = kind is None or _may_open_by_name(name, address, kind)
    matching = [
        entry
        for entry in allow_lists.hosts(policy.allow_hosts)
        if entry.holds(address) or (by_name and entry.is_called(name))
    ]
    if any(entry.takes(port) for entry in matching):
        return None
    if kind is None or matching:
        return f"port {port} is not open"
    return f"its address {address} is {kind}"


def _may_open_by_name(name: str, address: IP, kind: str) -> bool:
    if address in _METADATA or address in _NAT64:
        return False
    # Another name that leads to this machine itself is a mistake, or an attack on what listens here alone.
    return kind in _OPENED_BY_NAME or (kind == "loopback" and (name == "localhost" or name.endswith(".localhost")))


def check_object(address: S3Address, policy: FetchPolicy, job: str | None = None) -> None:
    """Refuse an object that no entry of the allowed buckets holds.

    What the job itself uploaded is always open, and so are uploaded weights, whose name is the digest of their content.
    What lies under the place of the service else belongs to other jobs: an entry opens it that begins there.

    Args:
        address: The object.
        policy: Which buckets are open.
        job: The job that names it, where that is known.

    Raises:
        FetchError: It is refused.
    """
    if not policy.allow_buckets:
        return
    parts = address.key.split("/")
    # Some stores take `a//b` and `a/./b` for `a/b`: such a key must be allowed both as it is and as it may be read.
    read_as = "/".join(part for part in parts if part not in {"", "."})
    if ".." in parts or not all(_is_open_object(address.bucket, key, policy, job) for key in {address.key, read_as}):
        words = f"{address.shown} is refused: {ALLOW_BUCKETS_SETTING} of the workers does not name its bucket or prefix"
        raise FetchError(words, why=words)


def _is_open_object(bucket: str, key: str, policy: FetchPolicy, job: str | None) -> bool:
    entries = [entry for entry in allow_lists.buckets(policy.allow_buckets) if entry.holds(bucket, key)]
    own_bucket, own_prefix = policy.own_place or ("", "")
    place = f"{own_prefix}/" if own_prefix else ""
    if bucket != own_bucket or not key.startswith(place):
        return bool(entries)
    if _UPLOADED_WEIGHTS.fullmatch(key[len(place) :]) or (job and key.startswith(keys.job_prefix(own_prefix, job))):
        return True
    return any(entry.bucket == own_bucket and entry.prefix.startswith(place) for entry in entries)


def checked_file(path: Path, policy: FetchPolicy) -> Path:
    """Resolve a path, links and `..` included, and return it if it is a regular file under one of the roots.

    Outside the roots it is not said whether there is such a file.

    Raises:
        FetchError: No roots are set, the path leads outside them, or it is no regular file that can be looked at.
    """
    named = shown(path)
    if not policy.file_roots:
        words = f"the file {named} is refused: this worker reads no files, as {FILE_ROOTS_SETTING} is not set"
        raise FetchError(words, why=words)
    resolved = Path(os.path.realpath(path))
    if not any(resolved.is_relative_to(os.path.realpath(root)) for root in policy.file_roots):
        words = f"the file {named} is refused: it is not under the folders of {FILE_ROOTS_SETTING}"
        raise FetchError(words, why=words)
    try:
        mode = resolved.lstat().st_mode
    except FileNotFoundError:
        raise FetchError(f"there is no file {named}") from None
    except OSError as error:
        raise FetchError(f"the file {named} cannot be read: {os.strerror(error.errno or 0)}") from error
    if not stat.S_ISREG(mode):
        raise FetchError(f"the file {named} is refused: it is a folder, a device or a pipe, not a regular file")
    return resolved
