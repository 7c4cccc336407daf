"""Read from the web: a socket goes to the IP address that was checked, and each redirect starts from the beginning."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from producer.jobs.fetch import addresses, content_encoding
from producer.jobs.fetch.addresses import HttpAddress
from producer.jobs.fetch.network import PIECE_BYTES, TryAgain, cause_of, refuse_larger
from producer.jobs.fetch.pace import Pace
from producer.jobs.fetch.policy import FetchPolicy, Resolve, checked_addresses, is_inner
from producer.jobs.model.errors import FetchError, GradcamError, NothingThere
from producer.jobs.store.connection_pool import ConnectionPool, Key
from producer.jobs.store.s3_errors import SERVER_ERRORS, TOO_MANY_REQUESTS

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CONNECT_S: Final = 5.0
#: A body may come in chunks of a byte, with a length each; beyond that, and these bytes for its head, it is a flood.
_MAX_OVERHEAD: Final = 16
_MAX_HEAD_BYTES: Final = 2**20
_OK: Final = 200
_NOTHING: Final = frozenset({404, 410})
_ASCII_END: Final = 0x80
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_REQUEST_HEADERS: Final = {
    "Accept": "*/*",
    # What comes as it is costs nobody time; what some servers pack all the same, `content_encoding` unpacks.
    "Accept-Encoding": "identity",
}
#: What has nothing to do with a server's bytes, whoever raises it.
_SOMEBODY_ELSES: Final = (GradcamError, MemoryError)


class HttpReader:
    """Reads `http://` and `https://` addresses; one a process, used by all its threads.

    Args:
        policy: Which hosts may be reached.
        resolve: Answers like `socket.getaddrinfo`.
    """

    def __init__(self, policy: FetchPolicy, resolve: Resolve) -> None:
        self._policy, self._resolve = policy, resolve
        # Reading the machine's certificates takes milliseconds: once, not for each connection.
        self._tls = ssl.create_default_context()
        self._idle = ConnectionPool()

    def close(self) -> None:
        """Close the connections kept for reuse."""
        self._idle.close()

    def pieces(self, first: HttpAddress, limit_bytes: int, pace: Pace) -> Generator[bytes, None, None]:
        """Read the body behind an address, and follow its redirects. Errors as `Fetcher.fetch`."""
        address = first
        for _ in range(self._policy.max_redirects + 1):
            with self._answer(address, pace) as answer:
                if answer.status not in _REDIRECTS:
                    _check_answer(address, answer, limit_bytes)
                    yield from _content(first, address, answer, pace)
                    return
                address = _redirected(first, address, answer.headers.get("Location"))
        raise FetchError(f"{first.shown} cannot be fetched: it redirects more than {self._policy.max_redirects} times")

    @contextmanager
    def _answer(self, address: HttpAddress, pace: Pace) -> Iterator[urllib3.response.HTTPResponse]:
        """Send the request and give the answer, its body unread; keep the connection if all of the body was read."""
        key, connection = self._connected(address, pace)
        reusable = False
        made: list[_CountedResponse] = []
        try:
            with _Watchdog(connection, address.shown, pace):
                with _told_as_fetch_errors(address, pace):
                    connection.timeout = max(pace.remaining_s(), 0.001)
                    counted = partial(_CountedResponse, pace=pace, made=made)
                    connection.response_class = counted  # type: ignore[assignment]
                    headers = _REQUEST_HEADERS | {"Host": address.netloc, "User-Agent": self._policy.user_agent}
                    connection.request(
                        "GET", address.target, headers=headers, preload_content=False, decode_content=False
                    )
                    answer = connection.getresponse()
                try:
                    yield answer
                    reusable = answer.isclosed()
                finally:
                    answer.close()
        finally:
            if reusable and connection.sock is not None and pace.remaining_s() > 0:
                self._idle.put(key, connection)
            else:
                connection.close()
                # The library lets go of an answer whose headers it refuses, without closing it.
                for each in made:
                    each.close()

    def _connected(self, address: HttpAddress, pace: Pace) -> tuple[Key, HTTPConnection]:
        """Connect to the first checked address that answers, or take a connection that is still open."""
        try:
            checked = checked_addresses(address.host, address.port, self._policy, self._resolve)
        except FetchError as error:
            cause = error.__cause__
            again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
            raise (TryAgain if again else FetchError)(f"{address.shown} cannot be fetched: {error}") from error
        keys = [(address.scheme, ip, address.port, address.host) for ip in checked]
        for key in keys:
            if connection := self._idle.take(key):
                return key, connection
        failed: Exception | None = None
        for key in keys:
            pace.check(address.shown)
            connection = self._unconnected(key, min(_CONNECT_S, pace.remaining_s()))
            try:
                # Its timeout is one for all of a handshake.
                connection.connect()
                return key, connection
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise FetchError(
                    f"{address.shown} is refused: the certificate is not valid ({error.verify_message})"
                ) from error
            except _SOMEBODY_ELSES:
                connection.close()
                raise
            except Exception as error:
                connection.close()
                failed = error
        if any(map(is_inner, checked)):
            # Whether a port of the inner network is closed or filtered, and what listens there, is for the log alone.
            words = f"{address.shown} cannot be fetched: its host cannot be reached"
            raise TryAgain(words, why=f"{words}: {cause_of(failed)}") from failed
        pace.check(address.shown)
        raise TryAgain(f"{address.shown} cannot be fetched: {cause_of(failed)}") from failed

    def _unconnected(self, key: Key, timeout_s: float) -> HTTPConnection:
        scheme, ip, port, host = key
        timeout_s = max(timeout_s, 0.001)
        if scheme == "http":
            return HTTPConnection(ip, port, timeout=timeout_s)
        # The connection goes to the checked address; SNI and certificate are about the name.
        return HTTPSConnection(
            ip, port, timeout=timeout_s, server_hostname=host, ssl_context=self._tls, cert_reqs="CERT_REQUIRED"
        )


def _check_answer(address: HttpAddress, answer: urllib3.response.HTTPResponse, limit_bytes: int) -> None:
    shown, status = address.shown, answer.status
    if status != _OK:
        words = f"{status} {http.client.responses.get(status, '')}".rstrip()
        again = status >= SERVER_ERRORS or status == TOO_MANY_REQUESTS
        kind = TryAgain if again else NothingThere if status in _NOTHING else FetchError
        raise kind(f"{shown} cannot be fetched: the server answered {words}")
    refuse_larger(shown, answer.length_remaining or 0, limit_bytes)


def _content(
    first: HttpAddress, address: HttpAddress, answer: urllib3.response.HTTPResponse, pace: Pace
) -> Generator[bytes, None, None]:
    pieces = _body(address, answer, pace)
    if not (said := answer.headers.get("Content-Encoding")):
        return pieces
    # Whoever named a packed file reads it as one: Apache says `x-gzip` of each .gz file.
    return content_encoding.content(
        pieces, said, address.shown, packed=content_encoding.is_packed(first.target.partition("?")[0])
    )


def _body(address: HttpAddress, answer: urllib3.response.HTTPResponse, pace: Pace) -> Generator[bytes, None, None]:
    pieces = answer.stream(PIECE_BYTES, decode_content=False)
    while True:
        with _told_as_fetch_errors(address, pace):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


@contextmanager
def _told_as_fetch_errors(address: HttpAddress, pace: Pace) -> Iterator[None]:
    """Around calls of the HTTP library: a stranger's bytes bring out more than its documented errors.

    A negative chunk size is a ValueError of `io`, for one. Only what is never about bytes goes on.
    """
    try:
        yield
    except _SOMEBODY_ELSES:
        raise
    except Exception as error:
        # The watchdog ends a fetch like a server that closes: only its verdict tells them apart.
        pace.check(address.shown)
        raise TryAgain(f"{address.shown} cannot be fetched: {cause_of(error)}") from error


def _redirected(first: HttpAddress, address: HttpAddress, location: str | None) -> HttpAddress:
    # Spaces may stand around any header's value.
    if not (location := (location or "").strip(" \t")):
        raise FetchError(f"{address.shown} cannot be fetched: it redirects to nowhere")
    try:
        joined = urljoin(address.url, _text_of_header(location))
    except ValueError:
        raise FetchError(f"{address.shown} cannot be fetched: it redirects to what is no address") from None
    try:
        target = addresses.parse(joined.partition("#")[0])
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


class _Watchdog:
    """Shuts a connection's socket down when its fetch shall end; used in a `with`, around what waits for the socket.

    A socket's timeout starts anew with each byte, so a thread looks: during the headers as well as during the body.

    Args:
        connection: Connected; whose socket.
        shown: The address as it may be shown.
        pace: Says when the fetch shall end.
    """

    def __init__(self, connection: HTTPConnection, shown: str, pace: Pace) -> None:
        self._sock, self._shown, self._pace = connection.sock, shown, pace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fetch-watchdog", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._pace.next_look_s()):
            try:
                self._pace.check(self._shown)
            except Exception:  # who waits for the socket raises it again
                _shut_down(self._sock)
                return


class _Counted(io.RawIOBase):
    """What comes from a socket, counted; a server that sends much more than its body is left."""

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._raw.readinto(buffer)
        pace = self._pace
        pace.received_bytes += count or 0
        if pace.received_bytes > _MAX_HEAD_BYTES + _MAX_OVERHEAD * pace.delivered_bytes:
            raise http.client.HTTPException("the answer is a flood")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _CountedResponse(http.client.HTTPResponse):
    """An answer whose bytes are counted as they come, those of its head and of the lengths of chunks included."""

    def __init__(
        self, sock: socket.socket, *arguments: Any, pace: Pace, made: list[_CountedResponse], **options: Any
    ) -> None:
        super().__init__(sock, *arguments, **options)
        made.append(self)
        self.fp.close()
        self.fp = io.BufferedReader(_Counted(sock.makefile("rb", buffering=0), pace))


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not `sock.shutdown`: an SSLSocket's own also drops its TLS state, which the reading thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
