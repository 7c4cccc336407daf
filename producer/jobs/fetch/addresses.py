r"""Which addresses an image or a weights file may have.

    address                                   is
    ────────────────────────────────────────  ─────────────────────────────────────────────────────────────────────
    s3://bucket/folder/a%20b?.jpg             taken literally: an object's key may hold any of these characters
    s3://bucket/key outside of GRADCAM_WORKER_ALLOW_BUCKETS    refused, where that is set
    s3://bucket, s3://bucket/, s3:///key      refused: no key, no key, no bucket
    s3://arn:aws:s3:…/key                     refused: an address never chooses an S3 endpoint
    https://host/a b.jpg?size=2#top           allowed; quoted where needed, without the fragment
    http://user:word@host/a.jpg               refused, and the user and the word are never shown (`redaction.py`)
    http://straße.example/a.jpg, HOST., Host  allowed: the name goes on in lower case, as browsers write it (UTS 46:
                                              xn--strae-oqa.example), without the last dot
    http://☕.example/a.jpg                    allowed, as in browsers, although IDNA 2008 itself has no symbols
    http://127.1/, 0x7f.1, 0177.0.0.1, 2130706433   refused: an IPv4 address has four plain decimal numbers
    http://[fe80::1%eth0]/                    refused: an address with a zone means something else on every machine
    http://10.0.0.7/, http://[::1]/, a name that leads there   refused, unless in GRADCAM_WORKER_ALLOW_HOSTS
    http://host:8080/                         the same: a port that is neither 80 nor 443 needs an entry that names it
    http://[::ffff:8.8.8.8]/, 6to4, Teredo    refused: disguises of IPv4 that no picture server needs
    http://[64:ff9b::808:808]/                judged by the IPv4 address inside: IPv6-only networks use NAT64
    file:///data/a%20b.jpg, file://localhost/…  percent-decoded; under GRADCAM_WORKER_FILE_ROOTS only, links resolved
    file://host/a.jpg, file:a.jpg             refused: another machine's file, a relative path
    a.jpg, C:\a.jpg, ftp:, data:, gopher:      refused: not one of the four schemes
    any with a control character, or longer than 8192 characters   refused
    any with #sha256= and 64 hexadecimal digits at its end   the same without it; what is fetched must have that digest
    any with #sha256= and something else behind it           refused

What may be reached of them says `policy.py`. There is no I/O here. Whatever is shown of an address went through
`redact` of `producer/jobs/model/redaction.py`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import quote, unquote, unquote_to_bytes

from producer.jobs.model import names
from producer.jobs.model.errors import FetchError
from producer.jobs.model.redaction import HIDDEN, redact

MAX_URI_CHARS: Final = 8192


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

_DIGEST_MARK: Final = "#sha256="
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNDECODABLE: Final = re.compile(r"[\ud800-\udfff]")

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HTTP: Final = re.compile(r"([^/?#]*)([^?#]*)(\?[^#]*)?")
_AUTHORITY: Final = re.compile(r"(\[[^\[\]@]*\]|[^:\[\]@]*)(?::([0-9]{0,5}))?")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What resolvers read as a number (WHATWG URL, "ends in a number"): 127.1, 0x7f.1, 0177.0.0.1, 2130706433.
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE)

_EXTENSION: Final = re.compile(r"(?<=.)\.[A-Za-z0-9]{1,8}\Z", re.DOTALL)
#: What is hidden, with the sign before it.
_HIDDEN: Final = re.compile(rf"(?:[;?&#]|%[0-9A-Fa-f]+)?{re.escape(HIDDEN)}.*", re.DOTALL)


# --- addresses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class S3Address:
    """An object; its key is literal, neither quoted nor decoded."""

    bucket: str
    key: str
    #: The address as it may be shown: redacted and shortened.
    shown: str
    scheme: Literal["s3"] = "s3"
    #: Of what must be there, in hexadecimal; None where nothing is said.
    sha256: str | None = None


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
    #: As of `S3Address`.
    sha256: str | None = None

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
    #: As of `S3Address`.
    sha256: str | None = None


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
        plain, digest = split_digest(uri)
        return _parse(uri, shown) if digest is None else replace(_parse(plain, _shown(plain)), sha256=digest)
    except ValueError as error:
        raise FetchError(f"{shown} is refused: {error}") from None


def split_digest(uri: str) -> tuple[str, str | None]:
    """Return an address and the digest at its end, in lower case; None where it has none.

    Raises:
        ValueError: The rest of a sentence about the address.
    """
    plain, mark, digest = uri.rpartition(_DIGEST_MARK)
    if not mark:
        return uri, None
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"behind {_DIGEST_MARK} stand 64 hexadecimal digits, and nothing else")
    return plain, digest.lower()


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
    return HttpAddress(scheme, host_name(parts[1]), port, target, shown)


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


def host_name(text: str) -> str:
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


def _shown(uri: str) -> str:
    text = redact(uri)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"


def stem(uri: str) -> str:
    """Return the file-name stem of an address, safe in any file or object name.

    The last part of the path is percent-decoded, loses its extension, and is made safe (`jobs/model/names.py`).
    It has 1 to 100 characters, or 120 bytes of UTF-8, and is `image` where nothing is left.
    """
    with suppress(ValueError):
        uri = split_digest(uri)[0]
    without_secret = redact(uri)
    match = _SCHEME.fullmatch(without_secret)
    path = match[2].partition("/")[2] if match else without_secret
    if match and match[1].lower() in ("http", "https"):
        path = re.split(r"[?#]", match[2], maxsplit=1)[0].partition("/")[2]
    name = unquote(_HIDDEN.sub("", path.rstrip("/").rpartition("/")[2])).lstrip(".")
    name = _EXTENSION.sub("", name).strip(".")
    if not name:
        return "image"
    safe = names.safe(name)
    return names.beginning(safe, _MAX_STEM_CHARS if safe.isascii() else _MAX_STEM_BYTES).rstrip(".")
