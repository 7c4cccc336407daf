"""Habits of web servers that browsers put up with: what they write into headers, and how bodies come packed."""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
import zstandard

from producer.input.sources import open_sources
from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import FetchError
from worker.settings import WorkerSettings

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 1000
LIST = b"url\nhttp://host/a.jpg\n"


class Wild(ThreadingHTTPServer):
    """Answers each path with the very bytes that a test puts there; keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []

    def put(self, path: str, body: bytes, *headers: bytes, status: str = "200 OK") -> str:
        """Have an answer at a path; its address."""
        lines = [f"HTTP/1.1 {status}".encode(), *headers, b"Content-Length: %d" % len(body), b"", body]
        self.answers[path] = b"\r\n".join(lines)
        return f"http://pictures.localhost:{self.server_address[1]}{path}"

    def redirect(self, location: bytes) -> str:
        return self.put("/here", b"", b"Location: " + location, status="302 Found")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast("Wild", self.server)
        server.requests.append((self.path, self.headers["Host"].partition(":")[0], self.headers["User-Agent"]))
        self.wfile.write(server.answers.get(self.path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def wild() -> Iterator[Wild]:
    server = Wild()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _loopback(host: str, port: int) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@contextmanager
def fetcher(**policy: Any) -> Iterator[Fetcher]:
    policy = {"allow_hosts": ("127.0.0.0/8:*",), "total_timeout_s": 10} | policy
    made = Fetcher(FetchPolicy(**policy), None, _loopback)
    try:
        yield made
    finally:
        made.close()


def fetched(uri: str, **policy: Any) -> bytes:
    with fetcher(**policy) as made:
        return made.fetch(uri)


# --- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/über.jpg".encode(), "/%C3%BCber.jpg"),
        ("/Å…\u4e00.jpg".encode(), "/%C3%85%E2%80%A6%E4%B8%80.jpg"),  # bytes that Latin-1 takes for control characters
        (b"/\xfcber.jpg", "/%FCber.jpg"),
        (b"/%C3%BCber.jpg", "/%C3%BCber.jpg"),
        ("/猫 🐈.jpg?größe=1".encode(), "/%E7%8C%AB%20%F0%9F%90%88.jpg?gr%C3%B6%C3%9Fe=1"),
        (b"/a.jpg \t ", "/a.jpg"),
        (b"\t/a.jpg#part", "/a.jpg"),
    ],
)
def test_a_redirect_leads_where_a_browser_goes(wild: Wild, location: bytes, asked: str) -> None:
    wild.put(asked, JPEG)
    assert fetched(wild.redirect(location)) == JPEG


def test_a_redirect_to_a_name_in_utf_8_is_looked_up_as_browsers_do(wild: Wild) -> None:
    wild.put("/a.jpg", JPEG)
    host = f"//straße.example:{wild.server_address[1]}/a.jpg"
    assert fetched(wild.redirect(host.encode())) == JPEG
    assert [host for _, host, _ in wild.requests] == ["pictures.localhost", "xn--strae-oqa.example"]


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://\uff11\uff12\uff17.0.0.1/ü".encode(), "127.0.0.1 is not known, or is refused"),
        ("http://127。0。0。1/ü".encode(), "127.0.0.1 is not known, or is refused"),
        ("//user:sesame@straße.example/".encode(), "password"),
        ("file:///etc/pässwd".encode(), "redirects from the web"),
        (b"//\xfcber.example/", "no name"),
        ("/a\u0085b".encode(), "control"),
        (b" ", "redirects to nowhere"),
    ],
)
def test_a_redirect_in_utf_8_is_checked_like_any_other(wild: Wild, location: bytes, why: str) -> None:
    with pytest.raises(FetchError, match=why) as caught:
        fetched(wild.redirect(location), allow_hosts=("pictures.localhost:*",))
    assert "sesame" not in str(caught.value)
    assert len(wild.requests) == 1


# --- how a body is packed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        *("none", "utf-8", "UTF-8", "binary", "aws-chunked", "aws-chunked,", "8bit", "base64", "x", "", "identity"),
        # These are known, and the body shows that they are not true.
        *("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "gzip, br"),
    ],
)
def test_a_picture_is_a_picture_whatever_the_server_says_of_it(wild: Wild, said: str) -> None:
    uri = wild.put("/a.jpg", JPEG, f"Content-Encoding: {said}".encode())
    with fetcher() as made:
        assert [made.fetch(uri), made.fetch(uri)] == [JPEG, JPEG]


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ("gzip", gzip.compress(JPEG, mtime=0)),
        ("X-GZip", gzip.compress(JPEG, mtime=0)),
        ("aws-chunked,gzip", gzip.compress(JPEG, mtime=0)),
        ("gzip", gzip.compress(JPEG[:1000], mtime=0) + gzip.compress(JPEG[1000:], mtime=0) + b"\0" * 512),
        ("deflate", zlib.compress(JPEG)),
    ],
)
def test_what_is_packed_although_nobody_asked_is_unpacked(wild: Wild, said: str, body: bytes) -> None:
    assert fetched(wild.put("/a.jpg", body, f"Content-Encoding: {said}".encode())) == JPEG


def test_a_body_that_comes_byte_by_byte_is_judged_all_the_same(wild: Wild) -> None:
    body = gzip.compress(JPEG, mtime=0)[:20] + gzip.compress(JPEG, mtime=0)[20:]
    pieces = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body[:30]) + b"%x\r\n" % (len(body) - 30)
    uri = wild.put("/a.jpg", b"")
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
    wild.answers["/a.jpg"] = head + pieces + body[30:] + b"\r\n0\r\n\r\n"
    assert fetched(uri) == JPEG


@pytest.mark.parametrize(
    ("said", "body", "why"),
    [
        ("br", b"\x0b\x02\x80not known here", r"packs it \(br\), although it was asked not to"),
        ("zstd", zstandard.compress(JPEG), r"packs it \(zstd\)"),
        ("x-compress", b"\x1f\x9d\x90some", r"packs it \(x-compress\)"),
        ("gzip", gzip.compress(JPEG, mtime=0)[:-20], "its end is missing"),
        ("gzip", gzip.compress(JPEG, mtime=0)[:-8] + bytes(8), "does not unpack"),
        ("gzip", gzip.compress(b"", mtime=0), "is empty"),
    ],
)
def test_what_cannot_be_unpacked_is_told_at_once(wild: Wild, said: str, body: bytes, why: str) -> None:
    with pytest.raises(FetchError, match=why):
        fetched(wild.put("/a.jpg", body, f"Content-Encoding: {said}".encode()))
    assert len(wild.requests) == 1


def test_a_small_body_that_unpacks_to_a_large_one_is_cut_at_the_limit(wild: Wild) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(FetchError, match="larger than 100,000 bytes"):
        fetched(wild.put("/a.jpg", bomb, b"Content-Encoding: gzip"), max_bytes=100_000)


@pytest.mark.parametrize(
    ("name", "said", "body"),
    [
        ("list.csv.gz", "x-gzip", gzip.compress(LIST, mtime=0)),
        ("list.csv.gz?version=2", "gzip", gzip.compress(LIST, mtime=0)),
        ("LIST.CSV.GZ", "gzip", gzip.compress(LIST, mtime=0)),
        ("list.csv.zst", "zstd", zstandard.compress(LIST)),
        ("list.csv", "gzip", gzip.compress(LIST, mtime=0)),
        ("list.csv", "utf-8", LIST),
    ],
)
def test_a_list_is_read_as_its_name_says(wild: Wild, name: str, said: str, body: bytes) -> None:
    uri = wild.put(f"/{name}", body, f"Content-Encoding: {said}".encode())
    with open_sources([uri.replace("pictures.localhost", "127.0.0.1")]) as sources:
        assert [source.uri for source in sources] == ["http://host/a.jpg"]


# --- what a worker is set up with ------------------------------------------------------------------------------------


def test_the_policy_of_a_worker_is_what_its_settings_say(wild: Wild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_USER_AGENT", "cats/1.0 (+https://example.org; cats@example.org)")
    monkeypatch.setenv("GRADCAM_WORKER_MAX_REDIRECTS", "5")
    monkeypatch.setenv("GRADCAM_WORKER_ALLOW_HOSTS", "127.0.0.1:*")
    wild.put("/a0.jpg", JPEG)
    for number in range(1, 7):
        wild.put(f"/a{number}.jpg", b"", f"Location: /a{number - 1}.jpg".encode(), status="301 Moved")
    made = Fetcher(WorkerSettings().fetch_policy, None)
    address = f"http://127.0.0.1:{wild.server_address[1]}/a"
    assert made.fetch(f"{address}5.jpg") == JPEG
    with pytest.raises(FetchError, match="more than 5 times"):
        made.fetch(f"{address}6.jpg")
    made.close()
    assert {agent for _, _, agent in wild.requests} == {"cats/1.0 (+https://example.org; cats@example.org)"}


@pytest.mark.parametrize("name", ["", " ", "a\nX: y", "Kätzchen", "a" * 257, "a\r"])
def test_a_name_that_no_header_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a line of 1 to 256"):
        WorkerSettings(user_agent=name)
