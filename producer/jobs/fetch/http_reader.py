"""Read from the web: a socket goes to the IP address that was checked, and each redirect starts from the beginning."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from producer.jobs.fetch import addresses, content_encoding
from producer.jobs.fetch.addresses import HttpAddress
from producer.jobs.fetch.network import NETWORK_ERRORS, PIECE_BYTES, TryAgain, cause_of, refuse_larger
from producer.jobs.fetch.policy import FetchPolicy, Resolve, checked_addresses, is_inner
from producer.jobs.model.errors import FetchError, NothingThere
from producer.jobs.store.connection_pool import ConnectionPool, Deadline, Key
from producer.jobs.store.s3_errors import SERVER_ERRORS, TOO_MANY_REQUESTS

_CONNECT_S: Final = 5.0
_OK: Final = 200
_NOTHING: Final = frozenset({404, 410})
_ASCII_END: Final = 0x80
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_REQUEST_HEADERS: Final = {
    "Accept": "*/*",
    # What comes as it is costs nobody time; what some servers pack all the same, `content_encoding` unpacks.
    "Accept-Encoding": "identity",
}


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

    def pieces(self, first: HttpAddress, limit_bytes: int, deadline: Deadline) -> Generator[bytes, None, None]:
        """Read the body behind an address, and follow its redirects. Errors as `Fetcher.fetch`."""
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
        except NETWORK_ERRORS as error:
            deadline.check(address.shown)
            raise TryAgain(f"{address.shown} cannot be fetched: {cause_of(error)}") from error
        finally:
            watchdog.cancel()
            if reusable and connection.sock is not None and deadline.remaining_s() > 0:
                self._idle.put(key, connection)
            else:
                connection.close()

    def _connected(self, address: HttpAddress, deadline: Deadline) -> tuple[Key, HTTPConnection]:
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
            except NETWORK_ERRORS as error:
                connection.close()
                failed = error
        if any(map(is_inner, checked)):
            # Whether a port of the inner network is closed or filtered, and what listens there, is for the log alone.
            words = f"{address.shown} cannot be fetched: its host cannot be reached"
            raise TryAgain(words, why=f"{words}: {cause_of(failed)}") from failed
        deadline.check(address.shown)
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
    first: HttpAddress, address: HttpAddress, answer: urllib3.response.HTTPResponse
) -> Generator[bytes, None, None]:
    pieces = answer.stream(PIECE_BYTES, decode_content=False)
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


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not `sock.shutdown`: an SSLSocket's own also drops its TLS state, which the reading thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
