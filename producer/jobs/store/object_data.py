"""Object data: what is written and read, signed and sent by obstore, which releases the interpreter's lock.

boto3 calls some dozens of event handlers a request, under that lock: five to eight times the processor time of 20 kB.
It still decides where a bucket is, whose credentials count, which certificates and proxies. Whatever is no plain
success here (another status, a connection that fails, no credentials, a key that obstore would change) is left to it,
which begins anew, tries again and has an error for everything. Errors of obstore hold whole answers: their text stays
here.

obstore follows the redirect of a GET, without our signature where it leads to another host.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypeVar, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client
    from obstore import Attributes, GetResult
    from obstore.store import ClientConfig, RetryConfig, S3Credential, S3Store

#: After so many failures without a single success a bucket is left to boto3: it lies in another region, behind an
#: access point, or is closed to us.
_GIVE_UP_AFTER: Final = 3
#: So many buckets keep their connections; images may lie in more.
_BUCKETS: Final = 16
#: Stands for a key in an address.
_SOME_KEY: Final = "KEY"
#: obstore's paths have no empty parts, none that are dots, and no control characters; UTF-8 has no lone surrogates.
_CHANGED_OR_REFUSED: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f\ud800-\udfff]")
#: obstore reads these, boto3 does not, and nothing takes them back.
_OBSTORE_ALONE: Final = ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_CHECKSUM_ALGORITHM")
#: For how long credentials are used before boto3 is asked again, which renews them ten minutes before they expire.
_CREDENTIALS_FOR: Final = timedelta(minutes=1)
#: Waits for a connection, and for an answer to begin or to go on, the sending included.
_CONNECT_WITHIN, _ANSWER_WITHIN, _PART_WITHIN = timedelta(seconds=5), timedelta(seconds=15), timedelta(seconds=60)
#: obstore has a limit for a whole answer, however large; ours are those above.
_NO_LIMIT: Final = timedelta(days=1)
_ONCE: Final[RetryConfig] = {"max_retries": 0, "retry_timeout": _ANSWER_WITHIN}
#: A part that fails must not cost all others.
_PARTS: Final[RetryConfig] = {"max_retries": 2, "retry_timeout": _PART_WITHIN}
_PART_BYTES, _MAX_PARTS, _PARTS_AT_ONCE = 8 * 2**20, 10_000, 4
_T = TypeVar("_T")


def keeps(key: str) -> bool:
    """Whether obstore writes and reads a key as it is, byte for byte."""
    return not _CHANGED_OR_REFUSED.search(key)


@cache
def _owner() -> int:
    """The process that moved an object first; obstore's threads are not in a child that it forks."""
    return os.getpid()


@dataclass
class _Bucket:
    """The way to a bucket."""

    objects: S3Store
    #: The same with longer waits, and tries of its own.
    files: S3Store
    worked: bool = False
    failures: int = 0


@dataclass
class _Reading:
    """A file that obstore reads; what went wrong in it, or interrupted it, is not the store's fault."""

    file: IO[bytes]
    moved: Callable[[int], None]
    error: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        """As of a file."""
        try:
            piece = self.file.read(size)
            self.moved(len(piece))
        except BaseException as error:
            self.error = error  # obstore would make another of it
            raise
        return piece

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As of a file."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return self.file.tell()


class BrokenOff(ConnectionError):
    """An object that came in part."""


class Answer:
    """An object that is being read, once.

    Attributes:
        length: How many bytes it has.
    """

    def __init__(self, result: GetResult) -> None:
        self.length = result.meta["size"]
        self._result: GetResult | None = result

    def read(self) -> bytes:
        """All of it. Raises BrokenOff."""
        with _told_as_broken_off():
            return self._taken().bytes().to_bytes()

    def pieces(self, at_least: int = 1) -> Iterator[bytes]:
        """Its bytes, in pieces of at least so many, but for the last; with 1 a piece is what has come.

        Who reads no further ends the connection. Raises BrokenOff.
        """
        with _told_as_broken_off():
            yield from self._taken().stream(at_least)

    def close(self) -> None:
        """End the connection, when nothing was read."""
        self._result = None

    def _taken(self) -> GetResult:
        result, self._result = self._result, None
        if result is None:
            raise BrokenOff("this object was read before")
        return result


@contextmanager
def _told_as_broken_off() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError):
        raise BrokenOff("the object store broke off its answer") from None


class ObjectData:
    """Makes one attempt at a time; safe to share between threads.

    Args:
        session: Whose credentials and certificates are used.
        locator: An S3 client that knows where a bucket is, by the addresses it presigns.
        failed: Called with each failure that is left to boto3.
    """

    def __init__(
        self, session: boto3.session.Session, locator: S3Client, failed: Callable[[], None] | None = None
    ) -> None:
        self._locator, self._credentials = locator, session.get_credentials()
        self._authorities = Path(session._session.get_config_variable("ca_bundle") or str(get_cert_path(True)))
        self._told = failed
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket | None] = OrderedDict()

    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> bool:
        """Write an object whole; False when that is boto3's to do."""
        way = self._way_to(bucket, key)
        if way is None:
            return False
        import obstore

        kind: Attributes = {"Content-Type": content_type}
        written = self._attempt(
            bucket, way, lambda: obstore.put(way.objects, key, body, attributes=kind, use_multipart=False)
        )
        return written is not None

    def put_file(self, bucket: str, key: str, file: IO[bytes], moved: Callable[[int], None]) -> bool:
        """Write an open file from its beginning, in parts when it is large; False when that is boto3's to do.

        Args:
            bucket: Where to.
            key: Its name there.
            file: What is read; it stays open.
            moved: Called with the count of the bytes that were read.

        Raises:
            OSError: It cannot be read.
        """
        way = self._way_to(bucket, key)
        if way is None:
            return False
        import obstore

        part_bytes = max(_PART_BYTES, -(-file.seek(0, os.SEEK_END) // _MAX_PARTS))
        file.seek(0)
        reading = _Reading(file, moved)
        written = self._attempt(
            bucket,
            way,
            lambda: obstore.put(
                way.files, key, cast("IO[bytes]", reading), chunk_size=part_bytes, max_concurrency=_PARTS_AT_ONCE
            ),
        )
        if reading.error is not None:
            raise reading.error
        return written is not None

    def get(self, bucket: str, key: str) -> Answer | None:
        """Begin to read an object; None when that is boto3's to do. The answer has to be closed."""
        way = self._way_to(bucket, key)
        if way is None:
            return None
        import obstore

        def begin() -> Answer:
            result = obstore.get(way.objects, key)
            if result.meta["e_tag"] is None:
                raise ValueError("S3 always tells")
            return Answer(result)

        return self._attempt(bucket, way, begin, reads=True)

    def _attempt(self, bucket: str, way: _Bucket, call: Callable[[], _T], *, reads: bool = False) -> _T | None:
        from obstore.exceptions import BaseError, UnauthenticatedError

        try:
            done = call()
        except UnauthenticatedError:
            return None  # credentials that cannot be renewed: boto3 tells
        except (BaseError, OSError, ValueError) as error:
            if not (reads and isinstance(error, FileNotFoundError)):
                self._failed(bucket, way)
                if self._told is not None:
                    self._told()
            return None
        way.worked = True
        return done

    def _failed(self, bucket: str, way: _Bucket) -> None:
        with self._lock:
            way.failures += 1
            if not way.worked and way.failures >= _GIVE_UP_AFTER:
                self._buckets[bucket] = None

    def _way_to(self, bucket: str, key: str) -> _Bucket | None:
        if self._credentials is None or not keeps(key) or _owner() != os.getpid():
            return None
        with self._lock:
            if bucket in self._buckets:
                self._buckets.move_to_end(bucket)
                return self._buckets[bucket]
        try:
            found = self._found(bucket)
        except (BotoCoreError, ClientError):
            return None  # no credentials yet, or no such name
        with self._lock:
            way = self._buckets.setdefault(bucket, found)
            while len(self._buckets) > _BUCKETS:
                self._buckets.popitem(last=False)
        return way

    def _found(self, bucket: str) -> _Bucket | None:
        url = self._locator.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _SOME_KEY})
        parts = urlsplit(url)
        if not parts.path.endswith("/" + _SOME_KEY) or any(map(os.environ.get, _OBSTORE_ALONE)):
            return None
        endpoint = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/' + _SOME_KEY)}"
        from obstore.exceptions import BaseError

        try:
            return _Bucket(
                self._store(bucket, endpoint, _ANSWER_WITHIN, _ONCE),
                self._store(bucket, endpoint, _PART_WITHIN, _PARTS),
            )
        except (BaseError, OSError, ValueError):
            return None  # certificates that cannot be read, among others

    def _store(self, bucket: str, endpoint: str, within: timedelta, retries: RetryConfig) -> S3Store:
        from obstore.store import S3Store

        options: ClientConfig = {
            "connect_timeout": _CONNECT_WITHIN,
            "read_timeout": within,
            "timeout": _NO_LIMIT,
            **_proxy_to(endpoint),
        }
        if endpoint.startswith("https:"):
            options["root_certificate"] = self._authorities.read_bytes()
        else:
            options["allow_http"] = True
        return S3Store(
            bucket,
            # All that obstore would else read from AWS_* by itself. The address holds the bucket, wherever it stands
            # there.
            config={
                "endpoint": endpoint,
                "aws_endpoint_url_s3": endpoint,
                "virtual_hosted_style_request": True,
                "region": self._locator.meta.region_name,
                "skip_signature": False,
                "unsigned_payload": False,
                "request_payer": False,
                "s3_express": False,
            },
            client_options=options,
            retry_config=retries,
            credential_provider=self._credential,
        )

    def _credential(self) -> S3Credential:
        if self._credentials is None:
            raise AssertionError("nothing is sent without credentials")
        found = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": found.access_key or "",
            "secret_access_key": found.secret_key or "",
            "token": found.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR,
        }


def _proxy_to(endpoint: str) -> ClientConfig:
    """The proxy that boto3 uses for an address; what obstore itself would read in the environment does not count."""
    if proxy := ProxyConfiguration(get_environ_proxies(endpoint)).proxy_url_for(endpoint):
        return {"proxy_url": proxy}
    if getproxies():
        return {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": urlsplit(endpoint).hostname or ""}
    return {}
