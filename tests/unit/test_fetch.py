"""What is fetched, what is refused, and whose fault a failure is: against real servers on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from producer.jobs.fetch import file_reader
from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import FetchError, WorkerError
from producer.jobs.store.connection_pool import MAX_IDLE

PICTURE = bytes(range(256)) * 1000  # 256,000 bytes: several pieces


class Answers(BaseHTTPRequestHandler):
    """Answers `/name` with the method `name`; the server counts requests and connections."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Host"]))
        name = self.path.strip("/").partition("?")[0].partition("/")[0]
        getattr(self, name)()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def redirect_to(self, location: str, status: int = 302) -> None:
        self.send(b"moved", status, Location=location)

    def picture(self) -> None:
        self.send(PICTURE)

    def empty(self) -> None:
        self.send(b"")

    def status(self) -> None:
        self.send(b"no", int(self.path.partition("?")[0].rpartition("/")[2]))

    def chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(PICTURE), 1000):
            self.wfile.write(b"3e8\r\n" + PICTURE[start : start + 1000] + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def endless(self) -> None:
        """Goes on without an announced length until the client leaves."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with self.server.until_gone():
            while True:
                self.wfile.write(b"x" * 65536)

    def announced(self) -> None:
        self.close_connection = True
        self.send(b"x", length=10**12)

    def truncated(self) -> None:
        self.close_connection = True
        self.send(PICTURE, length=len(PICTURE) + 1)

    def trickle(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        self.slowly(b"x")

    def trickle_chunks(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.slowly(b"1\r\nx\r\n")

    def trickle_headers(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.slowly(b"x")

    def slowly(self, piece: bytes) -> None:
        with self.server.until_gone():
            while not self.server.closing.wait(0.05):
                self.wfile.write(piece)
                self.wfile.flush()

    def silent(self) -> None:
        self.close_connection = True
        self.server.closing.wait(5)

    def hang_up(self) -> None:
        self.close_connection = True

    def once_broken(self) -> None:
        if len(self.server.requests) == 1:
            self.close_connection = True
            self.send(PICTURE * 2, length=len(PICTURE) * 3)
        else:
            self.picture()

    def once_503(self) -> None:
        self.send(PICTURE, 503 if len(self.server.requests) == 1 else 200)

    def last_answer(self) -> None:
        self.send(PICTURE, Connection="close")

    def two_answers(self) -> None:
        self.picture()
        time.sleep(0.05)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")

    def leaves_unsaid(self) -> None:
        self.send(PICTURE)
        self.close_connection = True

    def hop(self) -> None:
        left = int(self.path.rpartition("/")[2])
        self.redirect_to(f"../hop/{left - 1}" if left else "/picture")

    def loop(self) -> None:
        self.redirect_to("/loop")

    def to(self) -> None:
        self.redirect_to(self.path.partition("?")[2], 307)

    def nowhere(self) -> None:
        self.send(b"", 302)

    def bucket(self) -> None:
        """A small S3: the key says what the answer is."""
        status, _, code = self.path.rpartition("/")[2].partition("-")
        if status == "picture.jpg":
            self.send(PICTURE)
        elif status == "empty":
            self.send(b"")
        elif status == "truncated":
            self.truncated()
        else:
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send(body, int(status), Content_Type="application/xml")


class Server(ThreadingHTTPServer):
    """A server of `Answers` on a free port."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.requests: list[tuple[str, str]] = []
        self.connections = 0
        self.closing = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @contextmanager
    def until_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            return

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is what these tests are about."""


@contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as started:
        yield started


class Names:
    """A resolver: each question takes the next answer, the last one stays; counts its questions."""

    def __init__(self, *answers: str | OSError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[tuple[object, ...]]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answer.split()]


@pytest.fixture
def make() -> Iterator[Callable[..., Fetcher]]:
    """Builds fetchers that may reach this machine, and closes them."""
    made: list[Fetcher] = []

    def build(s3: Any = None, resolve: Any = socket.getaddrinfo, **policy: Any) -> Fetcher:
        policy = {"allow_hosts": ("127.0.0.0/8:*",), "total_timeout_s": 10} | policy
        made.append(Fetcher(FetchPolicy(**policy), s3, resolve))
        return made[-1]

    yield build
    for fetcher in made:
        fetcher.close()


Make = Callable[..., Fetcher]


def address(server: Server, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.port}/{path}"


# --- http: what is fetched -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["picture", "chunked", "last_answer", "hop/0", "hop/2", "once_broken", "once_503"])
def test_a_picture_arrives_whole(server: Server, make: Make, path: str) -> None:
    assert make().fetch(address(server, path)) == PICTURE


def test_a_file_is_written_from_where_it_stands(server: Server, make: Make) -> None:
    """Also when the first try broke off in the middle of the body."""
    file = BytesIO()
    file.write(b"before")
    assert make().fetch_to(address(server, "once_broken"), file) == len(PICTURE)
    assert file.getvalue() == b"before" + PICTURE
    assert len(server.requests) == 2


@pytest.mark.parametrize(("path", "connections"), [("picture", 1), ("chunked", 1), ("last_answer", 3)])
def test_a_connection_is_used_again_where_the_server_keeps_it(
    server: Server, make: Make, path: str, connections: int
) -> None:
    fetcher = make()
    for _ in range(3):
        assert fetcher.fetch(address(server, path)) == PICTURE
    assert server.connections == connections


def test_a_connection_closed_while_idle_is_no_error(server: Server, make: Make) -> None:
    fetcher = make()
    for _ in range(3):
        assert fetcher.fetch(address(server, "leaves_unsaid")) == PICTURE
        time.sleep(0.02)
    assert (len(server.requests), server.connections) == (3, 3)


def test_an_answer_nobody_asked_for_is_not_the_next_one(server: Server, make: Make) -> None:
    fetcher = make()
    assert fetcher.fetch(address(server, "two_answers")) == PICTURE
    time.sleep(0.3)
    assert fetcher.fetch(address(server, "picture")) == PICTURE
    assert server.connections == 2


def test_a_connection_is_not_shared_between_names(server: Server, make: Make) -> None:
    fetcher = make(resolve=Names("127.0.0.1"))
    fetcher.fetch(address(server, "picture", "one.test"))
    fetcher.fetch(address(server, "picture", "two.test"))
    assert server.connections == 2


def test_idle_connections_are_bounded(server: Server, make: Make) -> None:
    fetcher = make(resolve=Names("127.0.0.1"))
    for number in range(MAX_IDLE + 3):
        fetcher.fetch(address(server, "last_answer" if number % 2 else "picture", f"host{number}.test"))
        fetcher.fetch(address(server, "picture", f"host{number}.test"))
    assert len(fetcher._http._idle._kept) == MAX_IDLE


def test_threads_share_a_fetcher(server: Server, make: Make) -> None:
    fetcher = make()
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(fetcher.fetch, [address(server, "picture")] * 40))
    assert bodies == [PICTURE] * 40
    assert server.connections <= 8


def test_proxies_of_the_environment_are_not_used(server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name itself, and the check would be worth nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert make().fetch(address(server, "picture")) == PICTURE


# --- http: what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why", "requests"),
    [
        ("status/404", "answered 404 Not Found", 1),
        ("status/403", "answered 403 Forbidden", 1),
        ("status/206", "answered 206", 1),
        ("status/299", "answered 299$", 1),
        ("status/429", "answered 429", 3),
        ("status/500", "answered 500", 3),
        ("status/503", "answered 503", 3),
        ("hang_up", "the connection broke", 3),
        ("truncated", "the answer broke off", 3),
        ("empty", "is empty", 1),
        ("nowhere", "redirects to nowhere", 1),
        ("loop", "redirects more than 3 times", 4),
        ("hop/3", "redirects more than 3 times", 4),
    ],
)
def test_a_bad_answer_is_an_error_and_only_passing_ones_are_tried_again(
    server: Server, make: Make, path: str, why: str, requests: int
) -> None:
    with pytest.raises(FetchError, match=why) as caught:
        make().fetch(address(server, path))
    assert caught.value.reason == ("image" if path == "empty" else "fetch")
    assert "http://127.0.0.1" in str(caught.value)
    assert len(server.requests) == requests


def test_a_refused_connection_is_tried_three_times(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    names = Names("127.0.0.1")
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        make(resolve=names).fetch(f"http://pictures.test:{port}/")
    assert "connection refused" in (caught.value.why or "")
    assert names.asked == 3


def test_the_next_address_is_tried_when_one_does_not_answer(server: Server, make: Make) -> None:
    """Nothing listens on 127.0.0.2."""
    assert make(resolve=Names("127.0.0.2 127.0.0.1")).fetch(address(server, "picture", "two.test")) == PICTURE
    assert len(server.requests) == 1


def test_a_name_server_that_is_busy_is_asked_again(server: Server, make: Make) -> None:
    busy = socket.gaierror(socket.EAI_AGAIN, "busy")
    assert make(resolve=Names(busy, "127.0.0.1")).fetch(address(server, "picture", "a.test")) == PICTURE
    unknown = Names(socket.gaierror(socket.EAI_NONAME, "unknown"))
    with pytest.raises(FetchError, match=r"the host a\.test is not known"):
        make(resolve=unknown).fetch(address(server, "picture", "a.test"))
    assert unknown.asked == 1


def test_a_body_without_a_length_is_cut_at_the_limit(server: Server, make: Make) -> None:
    for path in ("endless", "chunked"):
        with pytest.raises(FetchError, match="larger than 100,000 bytes"):
            make(max_bytes=100_000).fetch(address(server, path))


def test_an_announced_length_beyond_the_limit_is_refused_unread(server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match="larger than 67,108,864 bytes"):
        make().fetch(address(server, "announced"))
    assert len(server.requests) == 1


def test_the_limit_of_a_call_goes_before_the_limit_of_the_policy(server: Server, make: Make) -> None:
    fetcher = make(max_bytes=10)
    assert fetcher.fetch(address(server, "picture"), max_bytes=len(PICTURE)) == PICTURE
    with pytest.raises(FetchError, match="larger than 255,999 bytes"):
        fetcher.fetch(address(server, "picture"), max_bytes=len(PICTURE) - 1)


@pytest.mark.parametrize("path", ["trickle", "trickle_chunks", "trickle_headers", "silent"])
def test_a_slow_server_cannot_exceed_the_total_time(server: Server, make: Make, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"took longer than 0\.4 s"):
        make(total_timeout_s=0.4).fetch(address(server, path))
    assert 0.3 < time.monotonic() - began < 1.5
    assert len(server.requests) == 1


def test_the_total_time_of_a_call_goes_before_that_of_the_policy(server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match=r"longer than 0\.3 s"):
        make().fetch_to(address(server, "trickle"), BytesIO(), total_timeout_s=0.3)


def test_retries_count_into_the_total_time(server: Server, make: Make) -> None:
    """There is no time for the second pause, so the server's own answer is what is told."""
    with pytest.raises(FetchError, match="answered 503"):
        make(total_timeout_s=0.4).fetch(address(server, "status/503"))
    assert len(server.requests) == 2


def test_no_thread_stays_behind(server: Server, make: Make) -> None:
    fetcher = make()
    for path in ("picture", "status/404", "truncated"):
        try:
            fetcher.fetch(address(server, path))
        except FetchError:
            continue
    assert not [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and not thread.finished.is_set()
    ]


# --- http: where it leads --------------------------------------------------------------------------------------------


def test_a_private_host_is_refused_without_a_connection(server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match=r"is refused.*GRADCAM_WORKER_ALLOW_HOSTS"):
        make(allow_hosts=("example.org:*",)).fetch(address(server, "picture"))
    assert server.connections == 0


def test_the_connection_goes_to_the_address_that_was_checked(server: Server, make: Make) -> None:
    """A name server that answers with another address the second time gains nothing: it is not asked."""
    names = Names("127.0.0.1", "10.0.0.1")
    fetcher = make(resolve=names, allow_hosts=("pictures.localhost:*",))
    assert fetcher.fetch(address(server, "picture", "Pictures.localhost")) == PICTURE
    assert names.asked == 1
    assert server.requests == [("/picture", f"pictures.localhost:{server.port}")]


def test_a_kept_connection_does_not_spare_the_check(server: Server, make: Make) -> None:
    fetcher = make(resolve=Names("127.0.0.1", "169.254.169.254"), allow_hosts=("pictures.localhost:*",))
    fetcher.fetch(address(server, "picture", "pictures.localhost"))
    with pytest.raises(FetchError, match="is refused") as caught:
        fetcher.fetch(address(server, "picture", "pictures.localhost"))
    assert "link-local" in (caught.value.why or "")


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://127.0.0.1:{port}/picture", "is refused"),
        ("//127.0.0.1:{port}/picture", "is refused"),
        ("http://169.254.169.254/latest/meta-data/", "is refused"),
        ("http://2130706433:{port}/picture", "no plain IPv4"),
        ("http://[::ffff:127.0.0.1]:{port}/picture", "is refused"),
        ("http://user:sesame@pictures.localhost:{port}/picture", "password"),
        ("file:///usr/bin/env", "redirects from the web to file:///usr/bin/env"),
        ("s3://bucket/picture.jpg", "redirects from the web to s3://"),
        ("ftp://pictures.localhost/picture", "begins with"),
        ("http://[::1", "no address"),
        ("http://pictures.localhost:{port}/status/404?token=sesame", "answered 404"),
    ],
)
def test_each_redirect_is_checked_like_the_first_address(server: Server, make: Make, location: str, why: str) -> None:
    """The first host is allowed by its name; what it redirects to is not."""
    fetcher = make(resolve=Names("127.0.0.1"), allow_hosts=("pictures.localhost:*",), file_roots=(Path("/usr"),))
    uri = address(server, f"to?{location.format(port=server.port)}", "pictures.localhost")
    with pytest.raises(FetchError, match=why) as caught:
        fetcher.fetch(uri)
    assert "pictures.localhost" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "/picture" not in [path for path, _ in server.requests]


def test_an_error_shows_no_signature(server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match="404") as caught:
        make().fetch(address(server, "status/404?X-Amz-Signature=sesame"))
    assert "sesame" not in str(caught.value)


def test_no_redirects_can_be_the_policy(server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match="more than 0 times"):
        make(max_redirects=0).fetch(address(server, "hop/0"))


# --- https -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key for the name pictures.test, signed by itself."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls")
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.test"
        f" -addext subjectAltName=DNS:pictures.test -keyout {path}/key.pem -out {path}/cert.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    (path / "both.pem").write_bytes((path / "key.pem").read_bytes() + (path / "cert.pem").read_bytes())
    return path / "both.pem"


@pytest.fixture
def secure_server(certificate: Path) -> Iterator[Server]:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with running(server):
        yield server


@pytest.fixture
def trusting(make: Make, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return make(resolve=Names("127.0.0.1"), total_timeout_s=3)


def test_a_certificate_is_checked_against_the_name(secure_server: Server, trusting: Fetcher) -> None:
    for _ in range(2):
        assert trusting.fetch(f"https://pictures.test:{secure_server.port}/picture") == PICTURE
    assert secure_server.connections == 1
    for host in ("other.test", "127.0.0.1"):
        with pytest.raises(FetchError, match="certificate is not valid"):
            trusting.fetch(f"https://{host}:{secure_server.port}/picture")


def test_an_unknown_signer_is_refused(secure_server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match=r"certificate is not valid \(self.signed"):
        make(resolve=Names("127.0.0.1")).fetch(f"https://pictures.test:{secure_server.port}/picture")


def test_https_never_falls_back_to_http(secure_server: Server, server: Server, trusting: Fetcher) -> None:
    location = address(server, "picture")
    with pytest.raises(FetchError, match="redirects from https to http"):
        trusting.fetch(f"https://pictures.test:{secure_server.port}/to?{location}")
    assert server.connections == 0


def test_a_slow_server_cannot_exceed_the_total_time_under_tls(secure_server: Server, trusting: Fetcher) -> None:
    uri = f"https://pictures.test:{secure_server.port}/trickle"
    with pytest.raises(FetchError, match=r"longer than 0\.4 s"):
        trusting.fetch_to(uri, BytesIO(), total_timeout_s=0.4)


def test_a_server_that_speaks_no_tls_is_an_error(server: Server, make: Make) -> None:
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        make().fetch(f"https://127.0.0.1:{server.port}/picture")
    assert "TLS failed" in (caught.value.why or "")


def test_a_handshake_that_never_ends_is_cut_off(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(FetchError, match="cannot be reached"):
            make(total_timeout_s=0.3).fetch(f"https://127.0.0.1:{mute.getsockname()[1]}/picture")
    assert time.monotonic() - began < 1.5


# --- s3 --------------------------------------------------------------------------------------------------------------


@contextmanager
def s3_client(port: int, **settings: Any) -> Iterator[Any]:
    # A session of its own: the default one keeps the credentials that other tests had.
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            connect_timeout=1,
            read_timeout=2,
            proxies={},
        ),
        **settings,
    )
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def s3(server: Server) -> Iterator[Any]:
    with s3_client(server.port, aws_access_key_id="id", aws_secret_access_key="word") as client:
        yield client


def test_an_object_arrives_whole(make: Make, s3: Any) -> None:
    assert make(s3).fetch("s3://bucket/folder/picture.jpg") == PICTURE


@pytest.mark.parametrize(
    ("key", "why", "requests"),
    [
        ("404-NoSuchKey", "there is no object s3://bucket/404-NoSuchKey", 1),
        ("404-NoSuchBucket", "there is no bucket bucket", 1),
        ("403-AccessDenied", "S3 answered AccessDenied", 1),
        ("403-SignatureDoesNotMatch", "S3 answered SignatureDoesNotMatch", 1),
        ("403-InvalidObjectState", "S3 answered InvalidObjectState", 1),
        ("500-InternalError", "S3 answered InternalError", 3),
        ("503-SlowDown", "S3 answered SlowDown", 3),
        ("truncated", "S3 broke off its answer", 3),
        ("empty", "is empty", 1),
    ],
)
def test_what_s3_does_not_give_is_the_address_fault(
    server: Server, make: Make, s3: Any, key: str, why: str, requests: int
) -> None:
    with pytest.raises(FetchError, match=why):
        make(s3).fetch(f"s3://bucket/{key}")
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    "key", ["403-InvalidAccessKeyId", "400-ExpiredToken", "400-InvalidToken", "403-RequestTimeTooSkewed"]
)
def test_refused_credentials_are_the_workers_fault(make: Make, s3: Any, key: str) -> None:
    with pytest.raises(WorkerError, match="refuses this worker's credentials"):
        make(s3).fetch(f"s3://bucket/{key}")


def test_an_object_store_out_of_reach_is_the_workers_fault(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        s3_client(port, aws_access_key_id="id", aws_secret_access_key="word") as client,
        pytest.raises(WorkerError, match="S3 cannot be used from this worker"),
    ):
        make(client).fetch("s3://bucket/picture.jpg")


def test_a_bucket_in_a_place_that_is_not_there_stops_no_worker_whose_store_answers() -> None:
    """S3 Express names its zone in the bucket's name; a stranger may write any."""
    s3 = boto3.client("s3", region_name="us-west-2", aws_access_key_id="id", aws_secret_access_key="word")
    uri = "s3://some--nozone-az9--x-s3/picture.jpg"
    well = Fetcher(FetchPolicy(), s3, store_answers=lambda: True)
    away = Fetcher(FetchPolicy(), s3, store_answers=lambda: False)
    with closing(s3), closing(well), closing(away):
        with pytest.raises(FetchError, match="cannot be reached for this bucket"):
            well.fetch(uri)
        with pytest.raises(WorkerError, match="S3 cannot be used from this worker"):
            away.fetch(uri)


def test_missing_credentials_are_the_workers_fault(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with s3_client(server.port) as client, pytest.raises(WorkerError, match="redentials"):
        make(client).fetch("s3://bucket/picture.jpg")


def test_an_object_beyond_the_limit_is_refused(make: Make, s3: Any) -> None:
    with pytest.raises(FetchError, match="larger than 100 bytes"):
        make(s3).fetch("s3://bucket/picture.jpg", max_bytes=100)


def test_without_an_object_store_s3_addresses_are_refused(make: Make) -> None:
    with pytest.raises(FetchError, match="no object store"):
        make().fetch("s3://bucket/picture.jpg")


# --- file ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "a b"
    folder.mkdir(parents=True)
    (folder / "picture#1.jpg").write_bytes(PICTURE)
    return Path(os.path.realpath(tmp_path / "root"))


def test_a_file_under_a_root_is_read(make: Make, root: Path) -> None:
    uri = (root / "a b" / "picture#1.jpg").as_uri()
    assert make(file_roots=(root,)).fetch(uri) == PICTURE
    with pytest.raises(FetchError, match="larger than 1,000 bytes"):
        make(file_roots=(root,)).fetch(uri, max_bytes=1000)
    with pytest.raises(FetchError, match="GRADCAM_WORKER_FILE_ROOTS is not set"):
        make().fetch(uri)


def test_a_file_that_is_no_picture_file_is_refused(make: Make, root: Path) -> None:
    (root / "escape").symlink_to("/etc/passwd")
    (root / "empty").touch()
    os.mkfifo(root / "pipe")
    fetcher = make(file_roots=(root,))
    for name, why in {
        "escape": "not under",
        "empty": "is empty",
        "pipe": "not a regular file",
        "no": "no file",
    }.items():
        with pytest.raises(FetchError, match=why) as refused:
            fetcher.fetch(f"file://{root}/{name}")
        assert refused.value.reason == ("image" if name == "empty" else "fetch")


def test_a_file_that_may_not_be_read_is_an_error(make: Make, root: Path) -> None:
    (root / "closed").write_bytes(PICTURE)
    (root / "closed").chmod(0)
    if os.access(root / "closed", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(FetchError, match="cannot be read: Permission denied"):
        make(file_roots=(root,)).fetch(f"file://{root}/closed")


def test_a_folder_swapped_for_a_link_after_the_check_is_not_followed(root: Path, tmp_path: Path) -> None:
    checked = root / "a b" / "picture#1.jpg"
    os.close(file_reader.open_without_links(checked))
    (root / "a b").rename(tmp_path / "outside")
    (root / "a b").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        file_reader.open_without_links(checked)


def test_a_file_swapped_for_a_pipe_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "pipe")
    os.close(file_reader.open_without_links(root / "pipe"))


def test_a_full_disk_is_not_taken_for_the_address_fault(server: Server, make: Make) -> None:
    class Full(BytesIO):
        def write(self, piece: Any, /) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        make().fetch_to(address(server, "picture"), Full())
    assert len(server.requests) == 1
