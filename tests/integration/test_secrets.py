"""Addresses with secrets in them, through a whole stack over TLS: where they are looked for, none is found.

Redis (with a user of few rights) and the store speak TLS by an authority of our own; one worker writes its log as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
import torchvision
from command import gradcam
from secret_addresses import SECRET, addresses
from stacks import settings_of
from tls_servers import Certificates, TlsProxy, rediss, secure_stack

from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.model.errors import ServiceError, Unfit
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.states import JobState
from producer.jobs.store.bucket import Storage, StoreAway
from producer.jobs.table.redis_scripts import connect

PHOTO = (Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png").read_bytes()
(LINE,) = re.findall(
    r"^(ACL SETUSER gradcam .*)$", (Path(__file__).parents[2] / "docs/operations.md").read_text(), re.MULTILINE
)


class Pages(BaseHTTPRequestHandler):
    """Pictures and weights for whoever knows the secret."""

    weights = b""
    found_again = False

    def do_GET(self) -> None:
        if SECRET not in self.path:
            self._answer(403, b"")
        elif self.path.startswith("/weights"):
            self._answer(200, self.weights)
        elif self.path.startswith("/to-a-secret"):
            self._answer(302, b"", f"/gone.jpg?sig={SECRET}")
        elif self.path.startswith("/to-a-user"):
            self._answer(302, b"", f"http://user:{SECRET}@{self.headers['Host']}/a.jpg")
        elif self.path.startswith("/gone") and not Pages.found_again:
            self._answer(404, b"")
        else:
            self._answer(200, b"no picture" if self.path.startswith("/broken") else PHOTO)

    def _answer(self, status: int, body: bytes, location: str | None = None) -> None:
        self.send_response(status)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@dataclass
class Own:
    """The stack of this module."""

    stack: Stack
    certificates: Certificates
    proxy: TlsProxy
    pages: str
    worker: Worker
    run_dir: Path
    weights_dir: Path
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.redis_url()

    def redis_url(self, user: str = "gradcam", password: str = "PASSWORD", **parameters: object) -> str:
        return rediss(
            self.proxy.port,
            {"ssl_ca_certs": self.certificates.authority, **parameters},
            user=user,
            password=password,
        )

    def tell(self, *arguments: str, code: int = 0) -> str:
        """Run a command; what it says is kept."""
        run = gradcam(*arguments, code=code)
        self.said.append(run.stdout + run.stderr)
        return self.said[-1]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("secrets")
    certificates = Certificates.make(folder)
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), folder / "weights.pth")
    Pages.weights = (folder / "weights.pth").read_bytes()
    dirs = {name: folder / name for name in ("run", "weights")}
    for path in dirs.values():
        path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CA_BUNDLE", str(certificates.authority))
        with (
            ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server,
            secure_stack(folder / "stack", certificates) as stack,
            TlsProxy(stack.redis.ports["redis"], certificates.server) as proxy,
        ):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with closing(redis.Redis.from_url(stack.redis.url)) as admin:
                admin.execute_command(*LINE.split())
            url = rediss(proxy.port, {"ssl_ca_certs": certificates.authority}, user="gradcam", password="PASSWORD")
            settings = {
                "GRADCAM_REDIS_URL": url,
                "GRADCAM_LOG": "json",
                "GRADCAM_WORKER_ALLOW_HOSTS": "127.0.0.1:*",
                "GRADCAM_WORKER_RUN_DIR": str(dirs["run"]),
                "GRADCAM_WORKER_WEIGHTS_CACHE_DIR": str(dirs["weights"]),
            }
            with settings_of(stack, **settings):
                worker = Worker(folder / "log", {**stack.environment(), **settings}, processes=1, devices="cpu")
                pages = f"http://127.0.0.1:{server.server_port}"
                made = Own(stack, certificates, proxy, pages, worker, dirs["run"], dirs["weights"])
                try:
                    yield made
                finally:
                    worker.stop()
            server.shutdown()


def keys_with_secret(stack: Stack) -> dict[str, int]:
    """Which keys of Redis hold a whole address, and for how many seconds more; -1 is for ever."""
    found = {}
    with closing(redis.Redis.from_url(stack.redis.url)) as admin:
        for key in admin.scan_iter():
            asked: Any = admin
            values: Any = {
                b"hash": lambda key: [part for pair in admin.hgetall(key).items() for part in pair],
                b"zset": lambda key: admin.zrange(key, 0, -1),
                b"set": admin.smembers,
                b"list": lambda key: admin.lrange(key, 0, -1),
                b"string": lambda key: [admin.get(key) or b""],
                b"none": lambda key: [],  # it expired since it was listed
            }[asked.type(key)](key)
            if any(SECRET.encode() in part for value in values for part in (value, _unpacked(value))):
                found[key.decode()] = int(admin.ttl(key))
    return found


def _unpacked(value: bytes) -> bytes:
    try:
        return zlib.decompress(value)
    except zlib.error:
        return b""


def tell_all(own: Own, listed: Path, options: tuple[str, ...], folder: Path) -> None:
    """Let every command say all that it knows of the job, and write what it can."""
    for verb in (["status"], ["status", "--json"], ["failures"], ["failures", "--json"], ["results", "--jsonl"],
                 ["results", "--csv"], ["results", "--urls"], ["audit", "--json"], ["delete"]):  # fmt: skip
        own.tell(verb[0], "secrets", *verb[1:], code={"delete": 2, "status": 1}.get(verb[0], 0))
    for verb in (["list"], ["list", "--json"], ["doctor"], ["doctor", "--json"]):
        own.tell(*verb)
    own.tell("results", "secrets", "--output-dir", str(folder / "pictures"))
    own.tell("results", "secrets", "--parquet", str(folder / "table.parquet"))
    own.tell("submit", str(listed), "--name", "secrets", *options)


def check_connections(own: Own) -> None:
    """The worker's processes, Celery's reader among them, are there as their own user, through TLS."""
    with closing(redis.Redis.from_url(own.stack.redis.url)) as admin:
        users = [str(entry.get("user")) for entry in admin.client_list()]
    assert users.count("gradcam") > 3
    assert set(users) == {"gradcam", "default"}
    assert own.proxy.connections >= users.count("gradcam")
    assert "no permissions" not in own.worker.log.read_text()


def test_no_secret_of_an_address_leaves_to_anybody(own: Own, tmp_path: Path) -> None:
    """Over `rediss://` with a user of its own, and S3 over TLS: what is written anywhere is looked through."""
    expected = addresses(own.pages)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(expected) + "\n")
    weights = f"{own.pages}/weights.pth?token={SECRET}"
    own.tell("submit", str(listed), "--dry-run")
    for refused in (f"http://user:{SECRET}@h/a.jpg", f"http:{SECRET}@h/a.jpg", f"http://h:9/{'a' * 9000}?k={SECRET}"):
        own.tell("submit", refused, code=2)
    own.tell("submit", str(listed), "--network", "squeezenet1_1", "--weight-path", f"http://u:{SECRET}@h/w", code=2)
    options = ("--network", "squeezenet1_1", "--weight-path", weights, "--outputs", "cam", "--chunk-size", "4")
    own.tell("submit", str(listed), "--name", "secrets", *options)

    job = "gradcam:job:secrets"
    assert keys_with_secret(own.stack) == {job: -1, f"{job}:items": -1}
    own.worker.start()
    client = Client.from_env()
    status = client.wait("secrets", timeout_s=120)
    assert status.state is JobState.COMPLETED_WITH_ERRORS, own.worker.log_tail()
    assert status.done == list(expected.values()).count("done")
    # What a retry needs stays, for as long as the job does.
    kept = keys_with_secret(own.stack)
    assert kept.keys() == {job, f"{job}:failures"}
    assert all(0 < seconds <= 30 * 86400 for seconds in kept.values())

    tell_all(own, listed, options, tmp_path)
    found = {
        "commands": "".join(own.said).encode(),
        "names of files": b"".join(str(path).encode() for path in tmp_path.rglob("*")),
        "table": (tmp_path / "table.parquet").read_bytes(),
        "the worker's log": own.worker.log.read_bytes(),
        "its run folder": b"".join(_content(path) for path in own.run_dir.rglob("*")),
        "its weights folder": b"".join(str(path).encode() for path in own.weights_dir.rglob("*")),
        "job.json": client.storage.get("jobs/secrets/job.json"),
        "names of objects": "".join(client.storage.keys("")).encode(),
        "objects": b"".join(map(client.storage.get, client.storage.keys("jobs/secrets/"))),
    }  # fmt: skip
    leaks = {place: re.findall(rb".{80}" + SECRET.encode(), content, re.DOTALL) for place, content in found.items()}
    assert {place: leak for place, leak in leaks.items() if leak} == {}
    assert not any(SECRET.encode() in content for content in found.values())
    assert all(found.values())
    # All of them did say something of these addresses.
    said = found["commands"].decode()
    assert f"{own.pages}/b.jpg?w=20&***" in said
    assert f"{own.pages}/gone.jpg?*** cannot be fetched: the server answered 404" in said
    assert f'"weights": "{own.pages}/weights.pth?***"' in found["job.json"].decode()
    assert json.loads(found["the worker's log"].splitlines()[0])["action"]
    # The command line itself has the whole addresses for their owner: a list to submit again.
    own.tell("failures", "secrets", "--output", str(tmp_path / "failed.csv"))
    assert f"{own.pages}/gone.jpg?sig={SECRET}" in (tmp_path / "failed.csv").read_text()
    assert (tmp_path / "failed.csv").stat().st_mode & 0o777 == 0o600

    # A retry has the whole addresses, and nothing keeps those of images that are done.
    Pages.found_again = True
    assert client.retry("secrets", only="fetch")
    client.wait("secrets", timeout_s=60)
    left = [failure.item.uri for failure in client.failures("secrets")]
    assert sorted(left) == sorted(
        uri for uri, what in expected.items() if what == "failed" or (what == "gone" and uri.startswith("s3:"))
    )
    check_connections(own)
    # Pictures that are lost cannot be made again from a record that holds half an address.
    (lost,) = (result for result in client.results("secrets", where=[f"uri={own.pages}/a.jpg*"]))
    client.storage.delete([lost.objects["cam"]])
    assert "no record has their images' whole addresses" in own.tell("audit", "secrets", code=1)
    assert "addresses of 1 image held what may be a secret" in own.tell("audit", "secrets", "--repair", code=2)
    assert SECRET not in "".join(own.said)
    client.delete("secrets", objects=True)
    assert keys_with_secret(own.stack) == {}


def _content(path: Path) -> bytes:
    return str(path).encode() + (path.read_bytes() if path.is_file() else b"")


def test_client_obstore_and_boto3_speak_tls_with_an_authority_of_ones_own(own: Own) -> None:
    before = own.proxy.connections
    assert connect(read(Connections)).ping()
    assert own.proxy.connections == before + 1
    storage = Storage.from_settings(read(Connections))
    storage.put("jobs/.tls", b"by obstore")
    assert storage.object_data is not None
    assert [way and way.worked for way in storage.object_data._buckets.values()] == [True]
    assert storage.get("jobs/.tls") == b"by obstore"
    storage.delete(["jobs/.tls"])


# -- what is wrong with TLS is one sentence -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "host", "says"),
    [
        ("other_authority", "localhost", "unable to get local issuer certificate"),
        ("authority", "127.0.0.2", "IP address mismatch"),
    ],
)
def test_a_redis_whose_certificate_is_not_valid_is_told_in_one_sentence(
    own: Own, monkeypatch: pytest.MonkeyPatch, authority: str, host: str, says: str
) -> None:
    parameters = {"ssl_ca_certs": getattr(own.certificates, authority)}
    with TlsProxy(own.stack.redis.ports["redis"], own.certificates.server, address=host) as proxy:
        monkeypatch.setenv("GRADCAM_REDIS_URL", rediss(proxy.port, parameters, password=SECRET, host=host))
        told = gradcam("list", code=4).stderr
        assert told.count("\n") == 1
        assert re.search(rf"Redis at {host}:\d+ shows a certificate that is not valid here \({says}", told)
        assert "?ssl_ca_certs=FILE in GRADCAM_REDIS_URL" in told
        assert SECRET not in told
        assert proxy.connections == 0 or authority == "authority"


def test_a_worker_ends_where_redis_shows_a_certificate_that_is_not_valid(own: Own) -> None:
    url = own.redis_url(password=SECRET, ssl_ca_certs=own.certificates.other_authority)
    command = [sys.executable, "-m", "worker.cli", "--devices", "cpu"]
    environment = {**os.environ, **own.stack.environment(), "GRADCAM_REDIS_URL": url, "GRADCAM_LOG": "text"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 4, run.stderr
    assert "shows a certificate that is not valid here" in run.stderr
    assert "Traceback" not in run.stderr
    assert SECRET not in run.stderr


def test_a_check_that_is_off_is_told(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter, says in (
        ("ssl_cert_reqs", "nobody checks"),
        ("ssl_check_hostname", "any server with a certificate"),
    ):
        value = {"ssl_cert_reqs": "none", "ssl_check_hostname": "false"}[parameter]
        monkeypatch.setenv("GRADCAM_REDIS_URL", own.redis_url(**{parameter: value}))
        (told,) = (line for line in gradcam("doctor").stdout.splitlines() if " TLS " in line)
        assert told.startswith("warn")
        assert f"{says}" in told
    monkeypatch.setenv("GRADCAM_REDIS_URL", own.url)
    assert "ok    TLS          its certificate is valid" in gradcam("doctor").stdout


def test_a_redis_that_asks_for_a_certificate_gets_one(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = own.certificates
    with TlsProxy(own.stack.redis.ports["redis"], certificates.server, certificates.authority) as proxy:
        parameters = {"ssl_ca_certs": certificates.authority}
        with_own = parameters | {"ssl_certfile": certificates.client, "ssl_keyfile": certificates.client}
        user: dict[str, str] = {"user": "gradcam", "password": "PASSWORD"}
        monkeypatch.setenv("GRADCAM_REDIS_URL", rediss(proxy.port, with_own, **user))
        assert connect(read(Connections)).ping()
        monkeypatch.setenv("GRADCAM_REDIS_URL", rediss(proxy.port, parameters, **user))
        with pytest.raises(Unfit, match="ssl_certfile and ssl_keyfile"):
            connect(read(Connections))


def test_tls_where_there_is_none_and_none_where_there_is_are_told_apart(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADCAM_REDIS_URL", f"redis://:word@127.0.0.1:{own.proxy.port}/0")
    with pytest.raises(ServiceError, match="rediss:// where it speaks TLS"):
        connect(read(Connections))
    plain = rediss(own.stack.redis.ports["redis"], {"ssl_ca_certs": own.certificates.authority, "socket_timeout": 3,
                   "socket_connect_timeout": 1}, password="word")  # fmt: skip
    monkeypatch.setenv("GRADCAM_REDIS_URL", plain)
    with pytest.raises(ServiceError, match="redis:// where it speaks no TLS"):
        connect(read(Connections))


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        ("other.pem", r"not valid here \(unable to get local issuer certificate\): name the file .* AWS_CA_BUNDLE"),
        ("missing.pem", "TLS to the object store fails .*correct AWS_CA_BUNDLE"),
        ("stack", "TLS to the object store fails .*correct AWS_CA_BUNDLE"),
        ("", r"not valid here .*: name the file .* AWS_CA_BUNDLE"),
    ],
)
def test_a_store_whose_certificate_is_not_valid_is_told_in_one_sentence(
    own: Own, monkeypatch: pytest.MonkeyPatch, bundle: str, says: str
) -> None:
    folder = own.certificates.authority.parent
    if bundle:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / bundle))
    else:
        monkeypatch.delenv("AWS_CA_BUNDLE")
    storage = Storage.from_settings(read(Connections))
    with pytest.raises(StoreAway, match=says) as caught:
        storage.check()
    assert "\n" not in str(caught.value)
    # Nor does obstore take it.
    assert storage.object_data is not None
    assert not storage.object_data.put(storage.bucket, "jobs/x", b"x", "text/plain")


def test_a_password_is_in_no_answer_of_a_redis_that_knows_no_auth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis tells the first arguments of a command that it does not know, and AUTH may be renamed away."""
    from deploy.servers import Valkey

    class WithoutAuth(Valkey):
        def configure(self) -> None:
            super().configure()
            path = self.directory / "valkey.conf"
            kept = [line for line in path.read_text().splitlines() if not line.startswith("requirepass")]
            path.write_text("\n".join([*kept, 'rename-command AUTH ""', 'rename-command HELLO ""', ""]))

        def answers(self) -> bool:
            with closing(redis.Redis(port=self.ports["redis"], protocol=2)) as client:
                return bool(client.ping())

    server = WithoutAuth(tmp_path, {}, "unused")
    server.start()
    try:
        monkeypatch.setenv("GRADCAM_REDIS_URL", f"redis://app:{SECRET}@127.0.0.1:{server.ports['redis']}/0")
        monkeypatch.setenv("GRADCAM_S3_BUCKET", "pictures")
        with pytest.raises(redis.exceptions.RedisError, match=SECRET):
            redis.Redis(port=server.ports["redis"], username="app", password=SECRET).ping()
        for command in (["list"], ["doctor"]):
            run = gradcam(*command, code=4)
            assert "refuses us" in run.stdout + run.stderr
            assert SECRET not in run.stdout + run.stderr
    finally:
        server.stop()
