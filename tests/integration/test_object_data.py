"""What obstore writes and reads is as boto3 would have it, and what it cannot do boto3 does."""

from __future__ import annotations

import http.server
import json
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import pytest
from fault_proxy import HttpFaultProxy
from s3_servers import proxied

from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import FetchError, FetchTimeout
from producer.jobs.model.settings import Connections, read
from producer.jobs.store import object_data
from producer.jobs.store.bucket import Storage
from producer.jobs.store.object_data import BrokenOff, ObjectData
from producer.jobs.store.s3_client import open_s3

if TYPE_CHECKING:
    from deploy.stack import Stack

BODY = b"\0\xff" * 5000
#: Names of every script, and what addresses, signatures and file systems stumble over.
KEPT = [
    *("a", "with space+plus&amp=1.jpg", " before", "behind ", "pct%20", "pct%", "%2e%2e/x", "hash#x", "q?x=1&y=2"),
    *(
        "é~ü",
        "e\u0301",
        "文件/名.jpg",
        "日本語",
        "हिन्दी",
        "עברית",
        "🐱.png",
        "\u00a0",
        "\u2028",
        "\x85",
        "\ufeffx",
        "\uff41",
    ),
    *("*'()!", '<>"|{}^`', "back\\slash", "a:b;c,d=e@f$", "[x]", ".hid", "..x", "x..", "...", "x" * 200),
]
#: What obstore would change or refuse.
LEFT = ["double//slash", "trailing/", "a/./b", "a/../b", "..", ".", "new\nline", "tab\tx", "\x01\x1f", "\x7f", "\ud800"]
#: Those of them that servers over a file system cannot have.
IMPOSSIBLE = {"trailing/", "a/./b", "a/../b", "..", ".", "\ud800"}


@pytest.fixture(scope="module")
def storage(stack: Stack) -> Storage:
    return Storage.from_settings(read(Connections))


def data_of(storage: Storage) -> ObjectData:
    assert storage.object_data is not None
    return storage.object_data


def read_by_obstore(storage: Storage, key: str) -> bytes | None:
    if (answer := data_of(storage).get(storage.bucket, key)) is None:
        return None
    with closing(answer):
        return answer.read()


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEPT, ids=ascii)
def test_a_key_is_the_same_for_obstore_and_for_boto3(storage: Storage, key: str) -> None:
    assert object_data.keeps(key)
    name = f"keys/{key}"
    assert data_of(storage).put(storage.bucket, name, BODY, "image/jpeg")
    told = storage.client.get_object(Bucket=storage.bucket, Key=name)
    assert (told["Body"].read(), told["ContentType"]) == (BODY, "image/jpeg")
    storage.client.put_object(Bucket=storage.bucket, Key=name, Body=b"by boto3")
    assert read_by_obstore(storage, name) == b"by boto3"


@pytest.mark.parametrize("key", LEFT, ids=ascii)
def test_a_key_that_obstore_would_change_is_left_to_boto3(storage: Storage, key: str) -> None:
    assert not object_data.keeps(key)
    name = f"left/{key}"
    assert not data_of(storage).put(storage.bucket, name, BODY, "image/jpeg")
    assert data_of(storage).get(storage.bucket, name) is None
    if key not in IMPOSSIBLE:
        storage.put(name, BODY)
        assert storage.get(name) == BODY


@pytest.mark.parametrize("key", ["", "/", "/leading", "//"])
def test_a_key_with_an_empty_part_at_its_end_is_left_to_boto3(key: str) -> None:
    assert not object_data.keeps(key)


def test_dots_in_a_key_lead_nowhere_else(storage: Storage) -> None:
    """Taken out of an address, they would lead to another object where nothing checks signatures."""
    storage.put("direct/other", b"other")
    fetcher = Fetcher(FetchPolicy(), storage.client, object_data=storage.object_data)
    with pytest.raises(FetchError):
        fetcher.fetch(f"s3://{storage.bucket}/direct/here/../other")


# --- objects and files -----------------------------------------------------------------------------------------------


def test_an_object_comes_whole_or_in_pieces(storage: Storage) -> None:
    assert data_of(storage).put(storage.bucket, "direct/a", BODY * 100, "image/jpeg")
    assert read_by_obstore(storage, "direct/a") == storage.get("direct/a") == BODY * 100
    answer = data_of(storage).get(storage.bucket, "direct/a")
    assert answer is not None
    assert answer.length == 1_000_000
    pieces = list(answer.pieces(300_000))
    assert b"".join(pieces) == BODY * 100
    assert min(map(len, pieces[:-1])) >= 300_000
    file = BytesIO(b"x" * 2_000_000)
    storage.get_to("direct/a", file)
    assert file.getvalue() == BODY * 100


def test_an_empty_object_is_written_and_read(storage: Storage) -> None:
    assert data_of(storage).put(storage.bucket, "direct/empty", b"", "text/plain")
    assert (storage.size("direct/empty"), read_by_obstore(storage, "direct/empty")) == (0, b"")


@pytest.mark.parametrize("size", [0, 10_000, 20_000_000])
def test_a_file_is_written_from_its_beginning(storage: Storage, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content := bytes(size // 2) + b"x" * (size // 2))
    counts: list[int] = []
    with path.open("rb") as file:
        file.read(7)
        assert data_of(storage).put_file(storage.bucket, "direct/file", file, counts.append)
        assert not file.closed
    assert sum(counts) == size
    assert storage.get("direct/file") == content
    storage.put_file("direct/again", path)
    assert storage.size("direct/again") == size


@pytest.mark.parametrize("error", [OSError("this disk is broken"), KeyboardInterrupt()], ids=repr)
def test_a_file_that_cannot_be_read_on_is_told_as_it_is_and_leaves_nothing(
    storage: Storage, tmp_path: Path, error: BaseException
) -> None:
    (tmp_path / "file").write_bytes(bytes(30_000_000))
    moved = 0

    def count(size: int) -> None:
        nonlocal moved
        moved += size
        if moved > 20_000_000:
            raise error

    with (tmp_path / "file").open("rb") as file, pytest.raises(type(error)) as caught:
        data_of(storage).put_file(storage.bucket, "direct/unread", file, count)
    assert caught.value is error
    assert storage.size("direct/unread") is None
    assert not storage.client.list_multipart_uploads(Bucket=storage.bucket).get("Uploads")


def test_one_part_that_is_refused_does_not_cost_the_others(
    broken: tuple[Storage, HttpFaultProxy], tmp_path: Path
) -> None:
    storage, proxy = broken
    (tmp_path / "file").write_bytes(bytes(20_000_000))
    proxy.answer_errors(503, "SlowDown", n=1, only=lambda method, path: method == "PUT" and "partNumber=2" in path)
    with (tmp_path / "file").open("rb") as file:
        assert data_of(storage).put_file(storage.bucket, "direct/parts", file, lambda _: None)
    assert storage.size("direct/parts") == 20_000_000
    assert proxy.counts["answer_errors"] == 1


def test_a_file_whose_parts_are_refused_is_written_by_boto3(
    broken: tuple[Storage, HttpFaultProxy], tmp_path: Path
) -> None:
    storage, proxy = broken
    (tmp_path / "file").write_bytes(bytes(9_000_000))
    refused = 0

    def one_more(method: str, path: str) -> bool:
        nonlocal refused
        refused += (hit := method == "PUT" and "partNumber=1" in path and refused < 3)
        return hit

    proxy.answer_errors(503, "SlowDown", only=one_more)
    storage.put_file("direct/refused", tmp_path / "file")
    assert storage.size("direct/refused") == 9_000_000
    assert not storage.client.list_multipart_uploads(Bucket=storage.bucket).get("Uploads")


# --- what is left to boto3 -------------------------------------------------------------------------------------------


def test_a_missing_object_is_boto3s_to_tell_and_says_nothing_of_the_bucket(storage: Storage) -> None:
    for _ in range(5):
        assert data_of(storage).get(storage.bucket, "direct/nothing") is None
    assert data_of(storage).put(storage.bucket, "direct/b", b"b", "text/plain")


def test_a_bucket_that_never_answers_well_is_left_to_boto3(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    proxy.answer_errors(301, "PermanentRedirect")
    for _ in range(5):
        assert not data_of(storage).put(storage.bucket, "direct/e", b"e", "text/plain")
    assert proxy.counts["answer_errors"] == 3


def test_one_that_has_answered_well_is_tried_again(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    assert data_of(storage).put(storage.bucket, "direct/f", b"f", "text/plain")
    proxy.answer_errors(503, "SlowDown", n=5)
    for _ in range(5):
        assert not data_of(storage).put(storage.bucket, "direct/f", b"f", "text/plain")
    assert data_of(storage).put(storage.bucket, "direct/f", b"f", "text/plain")


@pytest.mark.parametrize("way", ["fetch", "get", "get_to"])
def test_an_object_that_breaks_off_is_read_again(broken: tuple[Storage, HttpFaultProxy], way: str) -> None:
    storage, proxy = broken
    storage.put("direct/large", b"x" * 300_000)
    proxy.break_bodies(1, only=lambda method, _: method == "GET")
    if way == "get":
        assert storage.get("direct/large") == b"x" * 300_000
    else:
        file = BytesIO()
        if way == "get_to":
            storage.get_to("direct/large", file)
        else:
            fetcher = Fetcher(FetchPolicy(), storage.client, object_data=storage.object_data)
            fetcher.fetch_to(f"s3://{storage.bucket}/direct/large", file)
        assert file.getvalue() == b"x" * 300_000
    assert proxy.counts["break_bodies"] == 1


def test_an_answer_that_breaks_off_says_nothing_of_itself(broken: tuple[Storage, HttpFaultProxy]) -> None:
    storage, proxy = broken
    storage.put("direct/large", b"x" * 300_000)
    proxy.break_bodies(1)
    answer = data_of(storage).get(storage.bucket, "direct/large")
    assert answer is not None
    with pytest.raises(BrokenOff) as caught:
        answer.read()
    assert str(caught.value) == "the object store broke off its answer"


def test_an_object_that_is_too_large_is_refused_before_it_is_read(storage: Storage) -> None:
    storage.put("direct/large", b"x" * 300_000)
    fetcher = Fetcher(FetchPolicy(max_bytes=1000), storage.client, object_data=storage.object_data)
    with pytest.raises(FetchError, match="1,000 bytes"):
        fetcher.fetch(f"s3://{storage.bucket}/direct/large")


class Trickling(http.server.BaseHTTPRequestHandler):
    """A store that gives a byte at a time, as long as anybody reads."""

    left = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in {
            "Content-Length": "100000",
            "ETag": '"e"',
            "Last-Modified": self.date_time_string(),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.left.set()

    def log_message(self, *_: object) -> None:
        return


def test_an_object_that_comes_too_slowly_is_left(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        storage = Storage.from_settings(read(Connections))
        fetcher = Fetcher(FetchPolicy(total_timeout_s=0.5), storage.client, object_data=storage.object_data)
        began = time.monotonic()
        with pytest.raises(FetchTimeout, match=r"longer than 0\.5 s"):
            fetcher.fetch(f"s3://{storage.bucket}/slow")
        assert time.monotonic() - began < 3
        assert Trickling.left.wait(3), "the connection is still open"
        server.shutdown()


# --- credentials -----------------------------------------------------------------------------------------------------


def test_without_credentials_it_does_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_s3(read(Connections), 32)[0]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    assert not ObjectData(boto3.session.Session(), client).put("gradcam", "direct/c", b"c", "text/plain")


@pytest.fixture
def given_out(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Credentials that a program of a profile gives out, and that expire soon: they are asked for again and again."""
    file = tmp_path / "given.json"
    give(file, stack.s3.secret_key, stack)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {shlex.quote(str(file))}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setattr(object_data, "_CREDENTIALS_FOR", timedelta(0))
    return file


def give(file: Path, secret: str, stack: Stack) -> None:
    """Replaced, not written to: a program may be reading it."""
    expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    keys = {"AccessKeyId": stack.s3.access_key, "SecretAccessKey": secret, "Expiration": expires}
    file.with_suffix(".new").write_text(json.dumps({"Version": 1, **keys}))
    file.with_suffix(".new").replace(file)


def test_credentials_are_renewed_before_they_expire(given_out: Path, stack: Stack) -> None:
    storage = Storage.from_settings(read(Connections))

    def writes() -> bool:
        return data_of(storage).put(storage.bucket, "direct/renewed", b"body", "text/plain")

    assert writes()
    give(given_out, "hunter2hunter2", stack)
    assert not writes()
    give(given_out, stack.s3.secret_key, stack)
    assert writes()


def test_credentials_that_cannot_be_had_are_boto3s_to_tell(given_out: Path) -> None:
    storage = Storage.from_settings(read(Connections))
    given_out.unlink()
    for _ in range(5):
        assert not data_of(storage).put(storage.bucket, "direct/none", b"body", "text/plain")
    assert data_of(storage)._buckets.get(storage.bucket, "untried") is not None, "the bucket was given up for it"


# --- what the environment says ---------------------------------------------------------------------------------------


@pytest.fixture
def proxy(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpFaultProxy]:
    """A user's proxy: the S3 server itself takes what is asked of a proxy."""
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with proxied(stack.s3) as running:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{running.port}")
        yield running


def passes(proxy: HttpFaultProxy, key: str) -> bool:
    """Whether an object is asked for through the proxy, by obstore."""
    proxy.answer_errors(403, "AccessDenied")
    storage = Storage.from_settings(read(Connections))
    return not data_of(storage).put(storage.bucket, key, b"body", "text/plain")


def test_a_users_proxy_is_used(proxy: HttpFaultProxy) -> None:
    storage = Storage.from_settings(read(Connections))
    assert data_of(storage).put(storage.bucket, "direct/proxied", b"body", "text/plain")
    assert passes(proxy, "direct/proxied")
    assert proxy.counts["answer_errors"] == 1


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_a_host_that_needs_no_proxy_is_asked_directly(
    proxy: HttpFaultProxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # With its port, which obstore itself would not understand.
    monkeypatch.setenv(name, f"127.0.0.1:{urlsplit(str(read(Connections).s3_endpoint_url)).port}")
    assert not passes(proxy, "direct/unproxied")


def test_a_proxy_that_boto3_does_not_know_is_not_used(proxy: HttpFaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy")
    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    assert not passes(proxy, "direct/unproxied")


def test_what_obstore_alone_would_read_of_the_environment_changes_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REQUEST_PAYER": "requester",
        "AWS_S3_EXPRESS": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
        "AWS_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_BUCKET": "another",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AWS_TIMEOUT": "1ns",
    }.items():
        monkeypatch.setenv(name, value)
    storage = Storage.from_settings(read(Connections))
    assert data_of(storage).put(storage.bucket, "direct/environment", b"body", "text/plain")
    assert storage.get("direct/environment") == b"body"


@pytest.mark.parametrize("name", object_data._OBSTORE_ALONE)
def test_what_cannot_be_taken_back_leaves_all_to_boto3(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "sha256")
    storage = Storage.from_settings(read(Connections))
    assert not data_of(storage).put(storage.bucket, "direct/left", b"body", "text/plain")
    storage.put("direct/left", b"body")


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority's certificate, and one that it signed for 127.0.0.1 with its key."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls")
    (path / "names").write_text("subjectAltName=IP:127.0.0.1")
    key = f"{openssl} req -newkey rsa:2048 -nodes"
    for command in (
        f"{key} -x509 -days 2 -subj /CN=authority -keyout authority.key -out authority.pem",
        f"{key} -subj /CN=store -keyout store.key -out store.csr",
        f"{openssl} x509 -req -in store.csr -CA authority.pem -CAkey authority.key -set_serial 1 -days 2"
        " -extfile names -out store.pem",
    ):
        subprocess.run(command.split(), check=True, capture_output=True, cwd=path)
    return path


@contextmanager
def under_tls(folder: Path, target: str) -> Iterator[int]:
    """A port at which the server behind `target` speaks TLS."""
    address, context = urlsplit(target), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "store.pem", folder / "store.key")

    def copy(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)

    def serve(plain: socket.socket) -> None:
        here = (str(address.hostname), address.port or 80)
        with (
            plain,
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(here) as server,
        ):
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("said_by", ["AWS_CA_BUNDLE", "profile"])
def test_the_authority_that_boto3_trusts_is_trusted(
    stack: Stack, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said_by: str
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with under_tls(authority, str(read(Connections).s3_endpoint_url)) as port:
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        stranger = Storage.from_settings(read(Connections))
        assert not data_of(stranger).put(stranger.bucket, "direct/tls", b"body", "text/plain")
        bundle = str(authority / "authority.pem")
        if said_by == "profile":
            (tmp_path / "config").write_text(f"[default]\nca_bundle = {bundle}\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        else:
            monkeypatch.setenv(said_by, bundle)
        storage = Storage.from_settings(read(Connections))
        assert data_of(storage).put(storage.bucket, "direct/tls", b"body", "text/plain")
        assert read_by_obstore(storage, "direct/tls") == b"body"
        assert storage.size("direct/tls") == 4


def test_certificates_that_cannot_be_read_are_boto3s_to_tell(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", "https://127.0.0.1:9")
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    for bundle in ("nowhere.pem", "broken.pem"):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / bundle))
        data = data_of(Storage.from_settings(read(Connections)))
        assert not data.put("gradcam", "direct/tls", b"body", "text/plain")


# --- processes -------------------------------------------------------------------------------------------------------

FORKS = """
import os, signal, sys
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage

storage = Storage.from_settings(read(Connections))
moves = lambda: storage.object_data.put(storage.bucket, "direct/forked", b"body", "text/plain")
used_before = sys.argv[1] == "True"
if used_before:
    assert moves()
if child := os.fork():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert moves()
    sys.exit(status)
signal.alarm(20)
assert moves() is not used_before
storage.put("direct/forked", b"by the child")
assert storage.get("direct/forked") == b"by the child"
os._exit(0)
"""


@pytest.mark.parametrize("used_before", [True, False])
def test_a_forked_child_moves_objects_too(stack: Stack, used_before: bool) -> None:
    """obstore's threads are not in it: where it has been used before, boto3 does it all."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(used_before)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
