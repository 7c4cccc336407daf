"""Servers that speak HTTP wrongly, slowly or without an end: each is the address's fault, and holds nobody."""

from __future__ import annotations

import gzip
import hashlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO

import pytest

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.pace import interruptible
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import FetchError, FetchTimeout, Interrupted, OtherContent

PICTURE = bytes(range(256)) * 40
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
#: Sends what it likes; ends the connection when it returns.
Answer = Callable[[socket.socket], None]


class RawServer:
    """Reads each request, and answers with bytes of no particular form."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.answer: bytes | Answer = b""
        #: How many requests came.
        self.requests = 0
        self.closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            with suppress(OSError):
                connection = self._listening.accept()[0]
                if self.closing.is_set():
                    connection.close()
                    return
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                if not (piece := connection.recv(4096)):
                    return
                asked += piece
            self.requests += 1
            if callable(self.answer):
                self.answer(connection)
            else:
                connection.sendall(self.answer)

    def again_and_again(self, piece: bytes, *, first: bytes = b"", pause_s: float = 0.0) -> Answer:
        """Sends the same piece until the client leaves."""

        def send(connection: socket.socket) -> None:
            connection.sendall(first)
            while not self.closing.wait(pause_s):
                connection.sendall(piece)

        return send

    def close(self) -> None:
        self.closing.set()
        with socket.create_connection(("127.0.0.1", self.port)):
            pass
        for thread in self._threads:
            thread.join()
        self._listening.close()


@pytest.fixture(scope="module")
def running() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


@pytest.fixture
def server(running: RawServer) -> RawServer:
    running.requests = 0
    return running


@pytest.fixture(scope="module")
def fetchers() -> Iterator[dict[str, Fetcher]]:
    """One for each policy: making one reads the machine's certificates."""
    made: dict[str, Fetcher] = {}
    yield made
    for fetcher in made.values():
        fetcher.close()


@pytest.fixture
def fetch(server: RawServer, fetchers: dict[str, Fetcher]) -> Callable[..., bytes]:
    def fetched(path: str = "w", **limits: float) -> bytes:
        wanted = {"total_timeout_s": 20, "max_bytes": 2**20} | limits
        if (key := str(wanted)) not in fetchers:
            fetchers[key] = Fetcher(FetchPolicy(allow_hosts=("127.0.0.0/8:*",), **wanted), None)
        return fetchers[key].fetch(f"http://127.0.0.1:{server.port}/{path}")

    return fetched


Fetch = Callable[..., bytes]


def headers(*lines: bytes) -> bytes:
    return OK + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


#: Answers that are wrong and have an end.
BROKEN = {
    "no answer": b"",
    "an empty line": b"\r\n",
    "zeros": bytes(1000),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": PICTURE,
    "HTTP/2 alone": b"HTTP/2 200 OK\r\n\r\n" + PICTURE,
    "HTTP/9.9": b"HTTP/9.9 200 OK\r\n\r\n" + PICTURE,
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a negative status": b"HTTP/1.1 -200 OK\r\n\r\n",
    "a huge status": b"HTTP/1.1 999999999999 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status line of 100 kB": b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
    "half a status line": b"HTTP/1.1 2",
    "a header of 100 kB": headers(b"X-Long: " + b"x" * 100_000),
    "101 headers": headers(*(b"X-%d: y" % number for number in range(101))),
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "two lengths that differ": headers(b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "lengths by a comma that differ": headers(b"Content-Length: 5, 6") + b"hello!",
    "half a body": headers(b"Content-Length: 100") + b"hello",
    "chunk: -5": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "chunk: -1": CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
    "chunk: letters": CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
    "chunk: empty": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "chunk: a dot": CHUNKED + b"1.5\r\nhello\r\n0\r\n\r\n",
    "chunk: zeros": CHUNKED + b"\0\0\r\nhello",
    "chunk: UTF-8": CHUNKED + "\uff15\r\nhello".encode(),
    "chunk: larger than memory": CHUNKED + b"f" * 16 + b"\r\nhello",
    "chunk: a size of 60,000 digits": CHUNKED + b"f" * 60_000 + b"\r\nhello",
    "chunk: a size line of 2 MB": CHUNKED + b"0" * 2_000_000 + b"5\r\nhello\r\n0\r\n\r\n",
    "chunk: shorter than it says": CHUNKED + b"10\r\nhello",
    "chunk: no line end behind it": CHUNKED + b"5\r\nhello",
    "chunk: none": CHUNKED,
    "chunk: half a size": CHUNKED + b"5",
    "a trailer of 2 MB": CHUNKED + b"5\r\nhello\r\n0\r\nX: " + b"x" * 2_000_000 + b"\r\n\r\n",
    "gzip that is none": headers(b"Content-Encoding: gzip") + b"\x1f\x8b\x08" + b"x" * 100,
    "gzip that is cut": headers(b"Content-Encoding: gzip") + gzip.compress(PICTURE)[:-20],
    "deflate that is broken": headers(b"Content-Encoding: deflate") + b"\x78\x9c" + b"x" * 100,
    "gzip of 8 MB": headers(b"Content-Encoding: gzip") + gzip.compress(bytes(8 * 2**20), 1),
    "a redirect to bytes": b"HTTP/1.1 302 F\r\nLocation: \xff\xfe\x80://\r\n\r\n",
    "a redirect to a bracket": b"HTTP/1.1 302 F\r\nLocation: http://[\r\n\r\n",
    "a redirect to zeros": b"HTTP/1.1 302 F\r\nLocation: http://\0\0/\r\n\r\n",
    "a redirect of 60 kB": b"HTTP/1.1 302 F\r\nLocation: /" + b"a" * 60_000 + b"\r\n\r\n",
    "a redirect to a port beyond all": b"HTTP/1.1 302 F\r\nLocation: http://a.test:99999/\r\n\r\n",
    "a redirect without an end": b"HTTP/1.1 302 F\r\nLocation: /w\r\n\r\n",
    "a redirect to nothing": b"HTTP/1.1 302 F\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" + PICTURE,
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n" + PICTURE,
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n" + PICTURE,
    "a range nobody asked for": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/9\r\n\r\nhello",
    "an empty body": headers(b"Content-Length: 0"),
    "line ends everywhere": b"\r\n" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_the_address_fault(server: RawServer, fetch: Fetch, answer: bytes) -> None:
    """The HTTP library raises more than it documents: a chunk of -5 bytes was a ValueError, and so an unknown error."""
    server.answer = answer
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchError, match=r"^http://127\.0\.0\.1") as caught:
        fetch()
    assert not isinstance(caught.value, FetchTimeout)
    assert "\n" not in str(caught.value)
    assert server.requests <= 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


#: Odd, and readable all the same.
READABLE = {
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "line feeds alone": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "HTTP/1.0 until the end": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "a length of letters": headers(b"Content-Length: many") + b"hello",
    "a length beyond any number": headers(b"Content-Length: " + b"9" * 5000) + b"hello",
    "a negative length": headers(b"Content-Length: -5") + b"hello",
    "the same length twice": headers(b"Content-Length: 5", b"Content-Length: 5") + b"hello",
    "a header without a colon": headers(b"nonsense", b"Content-Length: 5") + b"hello",
    "a header of bytes": headers(b"X-\xff: \xfe\x80", b"Content-Length: 5") + b"hello",
    "a folded header": headers(b"X-A: 1", b" 2", b"Content-Length: 5") + b"hello",
    "an encoding that nobody knows": headers(b"Content-Encoding: \xff,,zip", b"Content-Length: 5") + b"hello",
    "a length and chunks": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "extensions of chunks": CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\nX-T: 1\r\n\r\n",
    "a chunk in capitals": CHUNKED + b"00000005\r\nhello\r\n0\r\n\r\n",
    "chunks without a last line": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "garbage behind the body": headers(b"Content-Length: 5") + b"hello" + b"HTTP/1.1 200 OK\r\n\r\nforged",
    "garbage behind the last chunk": CHUNKED + b"5\r\nhello\r\n0\r\n\r\nforged",
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + headers(b"Content-Length: 5") + b"hello",
}


@pytest.mark.parametrize("answer", READABLE.values(), ids=READABLE)
def test_an_odd_answer_is_read_as_browsers_read_it(server: RawServer, fetch: Fetch, answer: bytes) -> None:
    server.answer = answer
    assert [fetch(), fetch()] == [b"hello", b"hello"]


#: With a name of 500 letters, and nothing in it.
EMPTY_GZIP = b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 500 + b"\0" + b"\x03\x00" + bytes(8)

#: What a server sends for ever, and behind what.
ENDLESS = {
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, b""),
    "continue with headers": (b"HTTP/1.1 100 Continue\r\nX: " + b"y" * 60_000 + b"\r\n\r\n", b""),
    "a header": (b"x" * 60_000, OK + b"X-Long: "),
    "headers": (b"X-A: b\r\n" * 1000, OK),
    "a body": (b"x" * 60_000, OK + b"\r\n"),
    "a chunk size": (b"0" * 60_000, CHUNKED),
    "an extension of a chunk": (b"x" * 60_000, CHUNKED + b"5;"),
    "chunk: -1": (b"x" * 60_000, CHUNKED + b"-1\r\n"),
    "trailers": (b"X-A: b\r\n" * 1000, CHUNKED + b"5\r\nhello\r\n0\r\n"),
    "empty gzip files": (EMPTY_GZIP * 100, headers(b"Content-Encoding: gzip")),
}


@pytest.mark.parametrize(("piece", "first"), ENDLESS.values(), ids=ENDLESS)
def test_what_comes_without_an_end_is_left_soon(server: RawServer, fetch: Fetch, piece: bytes, first: bytes) -> None:
    """Nothing of it counts as a body, so that the limit of its size never comes."""
    server.answer = server.again_and_again(piece, first=first)
    began, before_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchError, match=r"^http://127\.0\.0\.1"):
        fetch()
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


# --- slow servers -----------------------------------------------------------------------------------------------------

#: What comes a few times a second, and behind what.
TRICKLES = {
    "a status line": (b"H", b""),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n", b""),
    "headers": (b"x", OK + b"X-Long: "),
    "a body": (b"x", OK + b"\r\n"),
    "a body of known length": (b"x", headers(b"Content-Length: 1000000")),
    "chunks": (b"1\r\nx\r\n", CHUNKED),
    "nothing": (b"", OK + b"\r\n"),
}


@pytest.mark.parametrize(("piece", "first"), TRICKLES.values(), ids=TRICKLES)
def test_a_server_below_the_minimum_rate_is_left(server: RawServer, fetch: Fetch, piece: bytes, first: bytes) -> None:
    """A byte every few seconds held a thread for the whole time that weights may take: half an hour."""
    server.answer = server.again_and_again(piece, first=first, pause_s=0.05)
    began = time.monotonic()
    with pytest.raises(FetchTimeout, match=r"cannot be fetched: fewer than 1,000 bytes a second came for 0\.3 s$"):
        fetch(low_speed_limit=1000, low_speed_time_s=0.3)
    assert time.monotonic() - began < 2
    assert server.requests == 1


def test_a_server_that_begins_fast_and_goes_on_slowly_is_left(server: RawServer, fetch: Fetch) -> None:
    server.answer = server.again_and_again(b"x", first=OK + b"\r\n" + b"x" * 500_000, pause_s=0.05)
    with pytest.raises(FetchTimeout, match="fewer than 1,000 bytes a second"):
        fetch(low_speed_limit=1000, low_speed_time_s=0.3)


def test_a_server_above_the_minimum_rate_may_take_its_time(server: RawServer, fetch: Fetch) -> None:
    def slowly(connection: socket.socket) -> None:
        connection.sendall(headers(b"Content-Length: 6000"))
        for _ in range(60):
            server.closing.wait(0.02)
            connection.sendall(b"x" * 100)

    server.answer = slowly
    assert len(fetch(low_speed_limit=1000, low_speed_time_s=0.3)) == 6000


def test_without_a_minimum_rate_only_the_total_time_counts(server: RawServer, fetch: Fetch) -> None:
    server.answer = server.again_and_again(b"x", first=OK + b"\r\n", pause_s=0.05)
    with pytest.raises(FetchTimeout, match=r"longer than 0\.8 s"):
        fetch(low_speed_limit=0, low_speed_time_s=0.1, total_timeout_s=0.8)


# --- nobody waits any more --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [b"", b"x" * 10_000], ids=["silent", "busy"])
def test_a_fetch_ends_when_nobody_waits_for_it_any_more(server: RawServer, fetch: Fetch, piece: bytes) -> None:
    server.answer = server.again_and_again(piece, first=OK + b"\r\n", pause_s=0.05)
    until = time.monotonic() + 0.4

    def check() -> None:
        if time.monotonic() > until:
            raise Interrupted("enough")

    began = time.monotonic()
    with interruptible(check), pytest.raises(Interrupted, match="enough"):
        fetch(max_bytes=2**30)
    assert 0.3 < time.monotonic() - began < 1.5
    assert server.requests == 1


def test_what_is_fetched_afterwards_is_not_interrupted(server: RawServer, fetch: Fetch) -> None:
    def check() -> None:
        raise Interrupted("enough")

    with suppress(Interrupted), interruptible(check):
        fetch()
    server.answer = headers(b"Content-Length: 5") + b"hello"
    assert fetch() == b"hello"


# --- digests ----------------------------------------------------------------------------------------------------------


def test_a_digest_at_the_end_of_an_address_is_checked(server: RawServer, fetch: Fetch) -> None:
    server.answer = headers(b"Content-Length: 5") + b"hello"
    digest = hashlib.sha256(b"hello").hexdigest()
    assert fetch(f"w#sha256={digest}") == fetch(f"w?a=b#sha256={digest.upper()}") == b"hello"
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(OtherContent, match=rf"another content than its #sha256= says \(it is {digest}\)$"):
        fetch(f"w#sha256={other}")
    assert server.requests == 3


def test_a_digest_is_of_what_is_left_of_a_packed_answer(server: RawServer, fetch: Fetch) -> None:
    server.answer = headers(b"Content-Encoding: gzip") + gzip.compress(PICTURE)
    assert fetch(f"w#sha256={hashlib.sha256(PICTURE).hexdigest()}") == PICTURE


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "0" * 64 + "&a=b", "\uff10" * 64])
def test_a_malformed_digest_is_refused_before_anything_is_asked(server: RawServer, fetch: Fetch, digest: str) -> None:
    with pytest.raises(FetchError, match="behind #sha256= stand 64 hexadecimal digits, and nothing else"):
        fetch(f"w#sha256={digest}")
    assert server.requests == 0


def test_a_digest_goes_before_the_file_is_given_on(server: RawServer) -> None:
    server.answer = headers(b"Content-Length: 5") + b"hello"
    fetcher = Fetcher(FetchPolicy(allow_hosts=("127.0.0.0/8:*",)), None)
    with pytest.raises(OtherContent):
        fetcher.fetch_to(f"http://127.0.0.1:{server.port}/w#sha256={'0' * 64}", BytesIO())
    fetcher.close()
