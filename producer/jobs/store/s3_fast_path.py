"""The short way to small objects: signed by botocore, sent by urllib3, one attempt each.

boto3 calls some dozens of event handlers a request: 1.5 to 1.8 ms of processor time for 20 kB written by 8 threads,
under the interpreter's lock, against 0.6 to 0.7 ms here, and a worker writes four objects an image. All that boto3
knows beyond the plain case is its own still: whatever is not a success here (another status, a redirect, a connection
that fails, a proxy, no credentials) is left to it, which begins anew, tries again and has an error for everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client

_OK: Final = 200
_NOT_FOUND: Final = 404
#: After so many failures without a single success a bucket is left to boto3: it lies in another region, behind an
#: access point, or is closed to us.
_GIVE_UP_AFTER: Final = 3
_TIMEOUT: Final = urllib3.Timeout(connect=5, read=15)
#: Stands for a key in an address; whatever is written in its place has to be quoted as botocore does.
_SOME_KEY: Final = "KEY"


@dataclass
class _Bucket:
    """The way to a bucket: scheme and host of its objects' addresses, and what comes before the key."""

    host: str
    path: str
    worked: bool = False
    failures: int = 0


@dataclass(frozen=True)
class Answer:
    """An object that is being read."""

    length: int
    _response: urllib3.BaseHTTPResponse = field(repr=False)

    def iter_chunks(self, chunk_size: int) -> Iterator[bytes]:
        """Its bytes, in pieces of up to so many. Raises urllib3's HTTPError when it breaks off."""
        return iter(self._response.stream(chunk_size, decode_content=False))

    def close(self) -> None:
        """Give the connection back, or end it when something is left unread."""
        if self._response.length_remaining:
            self._response.close()
        self._response.release_conn()


class S3FastPath:
    """Makes one attempt at a time; safe to share between threads.

    Args:
        session: Whose credentials and certificates are used.
        locator: An S3 client that knows where a bucket is, by the addresses it presigns.
        connections: How many threads will use it at once.
    """

    def __init__(self, session: boto3.session.Session, locator: S3Client, *, connections: int) -> None:
        self._locator, self._credentials = locator, session.get_credentials()
        authorities = session._session.get_config_variable("ca_bundle") or get_cert_path(True)
        self._pool = urllib3.PoolManager(
            num_pools=16, maxsize=connections, cert_reqs="CERT_REQUIRED", ca_certs=authorities
        )
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket | None] = {}

    def put(self, bucket: str, key: str, body: bytes, content_type: str) -> bool:
        """Write an object whole; False when that is boto3's to do."""
        response = self._sent("PUT", bucket, key, body, {"Content-Type": content_type})
        return response is not None

    def get(self, bucket: str, key: str) -> Answer | None:
        """Begin to read an object; None when that is boto3's to do. The answer has to be closed."""
        response = self._sent("GET", bucket, key, b"", {})
        if response is None:
            return None
        length = response.length_remaining
        if length is None:  # S3 always tells
            response.close()
            return None
        return Answer(length, response)

    def _sent(
        self, method: str, bucket: str, key: str, body: bytes, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse | None:
        way = self._way_to(bucket)
        if way is None or self._credentials is None:
            return None
        try:
            path = way.path + quote(key, safe="/~")
            request = AWSRequest(method, way.host + path, headers=headers, data=body)
            region = self._locator.meta.region_name
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", region).add_auth(request)
            # Not by the whole address: urllib3 would take dots out of a key.
            response = self._pool.connection_from_url(way.host).urlopen(
                method,
                path,
                body=body or None,
                headers=dict(request.headers.items()),
                redirect=False,
                retries=False,
                timeout=_TIMEOUT,
                assert_same_host=False,
                preload_content=method == "PUT",
            )
        except (urllib3.exceptions.HTTPError, OSError):
            self._failed(bucket, way)
            return None
        except (BotoCoreError, ClientError, RuntimeError):
            return None  # credentials that cannot be refreshed: boto3 tells
        if response.status == _OK:
            way.worked = True
            return response
        response.drain_conn()
        response.release_conn()
        if method == "PUT" or response.status != _NOT_FOUND:
            self._failed(bucket, way)
        return None

    def _way_to(self, bucket: str) -> _Bucket | None:
        with self._lock:
            if bucket in self._buckets:
                return self._buckets[bucket]
        try:
            found = self._found(bucket)
        except (BotoCoreError, ClientError):
            return None  # no credentials yet, or no such name
        with self._lock:
            return self._buckets.setdefault(bucket, found)

    def _found(self, bucket: str) -> _Bucket | None:
        url = self._locator.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _SOME_KEY})
        parts = urlsplit(url)
        if get_environ_proxies(url) or not parts.path.endswith(_SOME_KEY):
            return None
        return _Bucket(f"{parts.scheme}://{parts.netloc}", parts.path.removesuffix(_SOME_KEY))

    def _failed(self, bucket: str, way: _Bucket) -> None:
        with self._lock:
            way.failures += 1
            if not way.worked and way.failures >= _GIVE_UP_AFTER:
                self._buckets[bucket] = None
