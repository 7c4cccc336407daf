"""Get the bytes behind an address: within the worker's policy, its size limit and its time limit.

What `uris` decides about an address holds here for the connection too: a socket goes to the IP address that was
checked, a file is opened one folder at a time without following links, and each redirect starts from the beginning.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from producer.jobs.fetch import addresses, content_encoding
from producer.jobs.fetch.addresses import FetchPolicy, FileAddress, HttpAddress, S3Address
from producer.jobs.model.errors import FetchError, FetchTimeout, GradcamError, NothingThere, WorkerError
from producer.jobs.store.connection_pool import ConnectionPool, Deadline, Key

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

    from producer.jobs.store.s3_fast_path import Answer, S3FastPath

_CHUNK_BYTES: Final = 64 * 1024
_CONNECT_S: Final = 5.0
#: Waits before the second and the third try.
_PAUSES_S: Final = (0.1, 0.5)

_OK: Final = 200
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERRORS: Final = 500
_NOTHING: Final = frozenset({404, 410})
_ASCII_END: Final = 0x80
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_REQUEST_HEADERS: Final = {
    "Accept": "*/*",
    # What comes as it is costs nobody time; what some servers pack all the same, `encoded` unpacks.
    "Accept-Encoding": "identity",
}

# What S3 answers when the worker's own credentials or clock are wrong. SignatureDoesNotMatch is not among them: a
# strange key can cause it too, and one image must not be able to stop a worker.
_OWN_CREDENTIALS: Final = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed"})

_NETWORK_ERRORS: Final = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class _TryAgain(FetchError):
    """The network or the server failed; the same request may succeed in a moment."""


class Fetcher:
    """Fetches what `FetchPolicy` allows; one a process, used by all its threads.

    Args:
        policy: What may be fetched and how much of it.
        s3: The process's S3 client; its own settings bound the waits for S3. None: `s3://` is refused.
        resolve: Answers like `socket.getaddrinfo`.
        direct: The short way to S3's objects, where there is one.
        store_answers: Says whether S3 as such is well; tells the fault of one object from that of the store. None:
            every fault is the object's.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        s3: S3Client | None,
        resolve: addresses.Resolve = socket.getaddrinfo,
        store_answers: Callable[[], bool] | None = None,
        fast_path: S3FastPath | None = None,
    ) -> None:
        self._fast_path = fast_path
        self._store_answers = store_answers
        self._policy = policy
        self._s3 = s3
        self._resolve = resolve
        # Reading the machine's certificates takes milliseconds: once, not for each connection.
        self._tls = ssl.create_default_context()
        self._idle = ConnectionPool()

    def close(self) -> None:
        """Close the connections kept for reuse."""
        self._idle.close()

    def fetch(self, uri: str, max_bytes: int | None = None) -> bytes:
        """Return the body behind an address.

        Args:
            uri: An `s3://`, `http://`, `https://` or `file://` address.
            max_bytes: The largest body taken; the policy's limit where not given.

        Returns:
            At least one byte.

        Raises:
            FetchError: The address is refused, gone, empty, too large, too slow or broken.
            WorkerError: S3 cannot be used from this machine or with its credentials.
        """
        body = BytesIO()
        self.fetch_to(uri, body, max_bytes)
        return body.getvalue()

    def fetch_to(
        self, uri: str, file: BinaryIO, max_bytes: int | None = None, total_timeout_s: float | None = None
    ) -> int:
        """Write the body behind an address to a file, piece by piece.

        Args:
            uri: As for `fetch`.
            file: Writable and seekable; what it holds after an error is unspecified.
            max_bytes: The largest body taken; the policy's limit where not given.
            total_timeout_s: The longest it may take, retries included; the policy's limit where not given.

        Returns:
            The number of bytes written, at least one.

        Raises:
            FetchError: The address is refused, gone, empty, too large, too slow or broken.
            WorkerError: S3 cannot be used from this machine or with its credentials.
            OSError: The file cannot be written.
        """
        address = addresses.parse(uri)
        limit_bytes = self._policy.max_bytes if max_bytes is None else max_bytes
        deadline = Deadline(self._policy.total_timeout_s if total_timeout_s is None else total_timeout_s)
        try:
            return self._copy_patiently(address, file, limit_bytes, deadline)
        except (_TryAgain, FetchTimeout) as error:
            if not isinstance(address, S3Address) or self._store_answers is None:
                raise
            if not self._store_answers():
                raise WorkerError(f"the object store does not answer this worker: {error}") from error
        # The store is well: one more time, in case it has become so only now.
        return self._copy_patiently(address, file, limit_bytes, deadline.again())

    def _copy_patiently(self, address: addresses.Address, file: BinaryIO, limit_bytes: int, deadline: Deadline) -> int:
        start = file.tell()
        for pause_s in (*_PAUSES_S, None):
            try:
                return self._copy(address, file, limit_bytes, deadline)
            except (_TryAgain, FetchTimeout) as error:
                file.seek(start)
                file.truncate()
                if pause_s is None or isinstance(error, FetchTimeout) or deadline.remaining_s() <= pause_s:
                    raise
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _copy(self, address: addresses.Address, file: BinaryIO, limit_bytes: int, deadline: Deadline) -> int:
        written_bytes = 0
        with closing(self._pieces(address, limit_bytes, deadline)) as pieces:
            for piece in pieces:
                deadline.check(address.shown)
                written_bytes += len(piece)
                _refuse_larger(address.shown, written_bytes, limit_bytes)
                file.write(piece)
        # The watchdog ends a slow body like a server that closes: only the clock tells them apart.
        deadline.check(address.shown)
        if not written_bytes:
            raise FetchError(f"{address.shown} is empty")
        return written_bytes

    def _pieces(self, address: addresses.Address, limit_bytes: int, deadline: Deadline) -> Generator[bytes, None, None]:
        if isinstance(address, S3Address):
            return self._s3_pieces(address, limit_bytes)
        if isinstance(address, HttpAddress):
            return self._http_pieces(address, limit_bytes, deadline)
        return self._file_pieces(address, limit_bytes)

    # --- http and https ----------------------------------------------------------------------------------------------

    def _http_pieces(self, first: HttpAddress, limit_bytes: int, deadline: Deadline) -> Generator[bytes, None, None]:
        address = first
        for _ in range(self._policy.max_redirects + 1):
            with self._answer(address, deadline) as answer:
                if answer.status not in _REDIRECTS:
                    _check_answer(address, answer, limit_bytes)
                    yield from _content(first, address, answer)
                    return
                address = _redirected(first, address, answer.headers.get("Location"))
        raise FetchError(f"{first.shown} cannot be fetched: it redirects more than {self._policy.max_redirects} times")

    @contextmanager
    def _answer(self, address: HttpAddress, deadline: Deadline) -> Iterator[urllib3.response.HTTPResponse]:
        """Send the request and give the answer, its body unread; keep the connection if the body was read to its end.

        A socket's timeout starts anew with each byte, so a watchdog shuts the socket down when the time is over:
        during the headers as well as during the body.
        """
        key, connection = self._connected(address, deadline)
        sock = connection.sock
        watchdog = threading.Timer(max(deadline.remaining_s(), 0), _shut_down, (sock,))
        watchdog.daemon = True
        watchdog.start()
        reusable = False
        try:
            connection.timeout = max(deadline.remaining_s(), 0.001)
            headers = _REQUEST_HEADERS | {"Host": address.netloc, "User-Agent": self._policy.user_agent}
            connection.request("GET", address.target, headers=headers, preload_content=False, decode_content=False)
            answer = connection.getresponse()
            try:
                yield answer
                reusable = answer.isclosed()
            finally:
                answer.close()
        except _NETWORK_ERRORS as error:
            deadline.check(address.shown)
            raise _TryAgain(f"{address.shown} cannot be fetched: {_cause(error)}") from error
        finally:
            watchdog.cancel()
            if reusable and connection.sock is not None and deadline.remaining_s() > 0:
                self._idle.put(key, connection)
            else:
                connection.close()

    def _connected(self, address: HttpAddress, deadline: Deadline) -> tuple[Key, HTTPConnection]:
        """Connect to the first checked address that answers, or take a connection that is still open."""
        try:
            checked = addresses.checked_addresses(address.host, address.port, self._policy, self._resolve)
        except FetchError as error:
            cause = error.__cause__
            again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
            raise (_TryAgain if again else FetchError)(f"{address.shown} cannot be fetched: {error}") from error
        keys = [(address.scheme, ip, address.port, address.host) for ip in checked]
        for key in keys:
            if connection := self._idle.take(key):
                return key, connection
        failed: Exception | None = None
        for key in keys:
            deadline.check(address.shown)
            connection = self._unconnected(key, min(_CONNECT_S, deadline.remaining_s()))
            try:
                connection.connect()
                return key, connection
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise FetchError(
                    f"{address.shown} is refused: the certificate is not valid ({error.verify_message})"
                ) from error
            except _NETWORK_ERRORS as error:
                connection.close()
                failed = error
        deadline.check(address.shown)
        raise _TryAgain(f"{address.shown} cannot be fetched: {_cause(failed)}") from failed

    def _unconnected(self, key: Key, timeout_s: float) -> HTTPConnection:
        scheme, ip, port, host = key
        timeout_s = max(timeout_s, 0.001)
        if scheme == "http":
            return HTTPConnection(ip, port, timeout=timeout_s)
        # The connection goes to the checked address; SNI and certificate are about the name.
        return HTTPSConnection(
            ip, port, timeout=timeout_s, server_hostname=host, ssl_context=self._tls, cert_reqs="CERT_REQUIRED"
        )

    # --- s3 ----------------------------------------------------------------------------------------------------------

    def _s3_pieces(self, address: S3Address, limit_bytes: int) -> Generator[bytes, None, None]:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        if self._s3 is None:
            raise FetchError(f"{address.shown} is refused: no object store is set up here")
        try:
            body, length = self._s3_body(self._s3, address)
        except ClientError as error:
            raise _s3_error(address, error) from error
        except ParamValidationError as error:
            raise FetchError(f"{address.shown} is refused: S3 has no such names") from error
        except BotoCoreError as error:
            raise WorkerError(f"S3 cannot be used from this worker: {error}") from error
        with closing(body):
            _refuse_larger(address.shown, length, limit_bytes)
            try:
                yield from body.iter_chunks(_CHUNK_BYTES)
            except (BotoCoreError, *_NETWORK_ERRORS) as error:
                raise _TryAgain(f"{address.shown} cannot be fetched: S3 broke off its answer") from error

    def _s3_body(self, s3: S3Client, address: S3Address) -> tuple[StreamingBody | Answer, int]:
        if self._fast_path is not None and (short := self._fast_path.get(address.bucket, address.key)):
            return short, short.length
        answer = s3.get_object(Bucket=address.bucket, Key=address.key)
        return answer["Body"], answer["ContentLength"]

    # --- file --------------------------------------------------------------------------------------------------------

    def _file_pieces(self, address: FileAddress, limit_bytes: int) -> Generator[bytes, None, None]:
        path = addresses.checked_file(address.path, self._policy)
        try:
            with os.fdopen(_open_following_nothing(path), "rb", buffering=0) as source:
                found = os.fstat(source.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise FetchError(f"{address.shown} is refused: it is not a regular file")
                _refuse_larger(address.shown, found.st_size, limit_bytes)
                while piece := source.read(_CHUNK_BYTES):
                    yield piece
        except OSError as error:
            raise FetchError(f"{address.shown} cannot be read: {os.strerror(error.errno or 0)}") from error


def _check_answer(address: HttpAddress, answer: urllib3.response.HTTPResponse, limit_bytes: int) -> None:
    shown, status = address.shown, answer.status
    if status != _OK:
        words = f"{status} {http.client.responses.get(status, '')}".rstrip()
        again = status >= _SERVER_ERRORS or status == _TOO_MANY_REQUESTS
        kind = _TryAgain if again else NothingThere if status in _NOTHING else FetchError
        raise kind(f"{shown} cannot be fetched: the server answered {words}")
    _refuse_larger(shown, answer.length_remaining or 0, limit_bytes)


def _content(
    first: HttpAddress, address: HttpAddress, answer: urllib3.response.HTTPResponse
) -> Generator[bytes, None, None]:
    pieces = answer.stream(_CHUNK_BYTES, decode_content=False)
    if not (said := answer.headers.get("Content-Encoding")):
        return pieces
    # Whoever named a packed file reads it as one: Apache says `x-gzip` of each .gz file.
    return content_encoding.content(
        pieces, said, address.shown, packed=content_encoding.is_packed(first.target.partition("?")[0])
    )


def _redirected(first: HttpAddress, address: HttpAddress, location: str | None) -> HttpAddress:
    # Spaces may stand around any header's value.
    if not (location := (location or "").strip(" \t")):
        raise FetchError(f"{address.shown} cannot be fetched: it redirects to nowhere")
    try:
        joined = urljoin(address.url, _text_of_header(location))
    except ValueError:
        raise FetchError(f"{address.shown} cannot be fetched: it redirects to what is no address") from None
    try:
        target = addresses.parse(joined)
    except FetchError as error:
        raise FetchError(f"{first.shown} redirects to an address that cannot be used: {error}") from error
    if not isinstance(target, HttpAddress):
        raise FetchError(f"{first.shown} is refused: it redirects from the web to {target.shown}")
    if (address.scheme, target.scheme) == ("https", "http"):
        raise FetchError(f"{first.shown} is refused: it redirects from https to http")
    return replace(target, shown=f"{target.shown} (redirected from {first.shown})")


def _text_of_header(value: str) -> str:
    """What a server wrote in its header, which `http.client` reads as Latin-1; browsers read it as UTF-8.

    Bytes that are no UTF-8 go back to the server as they came, as in browsers.
    """
    raw = value.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < _ASCII_END else f"%{byte:02X}" for byte in raw)


def _s3_error(address: S3Address, error: ClientError) -> GradcamError:
    code = str(error.response.get("Error", {}).get("Code", "")) or "an error"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _OWN_CREDENTIALS:
        return WorkerError(
            f"S3 refuses this worker's credentials ({code}): correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if code in ("NoSuchKey", "404"):
        return NothingThere(f"there is no object {address.shown}")
    if code == "NoSuchBucket":
        return FetchError(f"{address.shown} cannot be fetched: there is no bucket {address.bucket}")
    if status >= _SERVER_ERRORS or code == "SlowDown":
        return _TryAgain(f"{address.shown} cannot be fetched: S3 answered {code}")
    return FetchError(f"{address.shown} cannot be fetched: S3 answered {code}")


def _open_following_nothing(path: Path) -> int:
    """Open a resolved path one folder at a time, so that a folder swapped for a link since then is an error."""
    # O_PATH needs no right to list the folder; where there is none (macOS), O_RDONLY does.
    folder_flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
    folder = os.open("/", folder_flags)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, folder_flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        # O_NONBLOCK: a pipe put in the file's place must not hang us before we see what it is.
        return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _refuse_larger(shown: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise FetchError(f"{shown} is refused: it is larger than {limit_bytes:,} bytes")


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not `sock.shutdown`: an SSLSocket's own also drops its TLS state, which the reading thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _cause(error: BaseException | None) -> str:
    """Say in the network's own words what happened, without the library's object names."""
    root = error.__cause__ or error if error else None
    if isinstance(root, TimeoutError):
        return "no answer in time"
    if isinstance(root, http.client.IncompleteRead):
        return "the answer broke off"
    if isinstance(root, ssl.SSLError):
        return f"TLS failed ({root.reason})"
    if isinstance(root, OSError) and root.errno:
        return os.strerror(root.errno).lower()
    return "the connection broke"
