"""Weights that come slowly, or have changed: the worker goes on, and a job is explained by one set of them."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from command import gradcam, worker_check
from exporters import serving
from stacks import SMALL, asleep, eventually, own_stack
from torchvision.models import shufflenet_v2_x0_5

from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack

PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
NETWORK = "shufflenet_v2_x0_5"
MISSING = "0" * 64


class _Server(ThreadingHTTPServer):
    """Gives out `content` at once, and under /slow a byte now and then, for ever."""

    daemon_threads = True
    content = b""
    closing = threading.Event()
    #: The slow answers that are being read.
    open: set[object]

    @property
    def reading(self) -> int:
        return len(self.open)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if not self.path.startswith("/slow"):
            self.wfile.write(self.server.content)
            return
        self.server.open.add(self)
        with suppress(OSError):
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
        self.server.open.discard(self)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.closing, running.open = threading.Event(), set()
        thread = threading.Thread(target=partial(running.serve_forever, 0.05))
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker of one process, which leaves no server for being slow."""
    folder = tmp_path_factory.mktemp("slow")
    settings = {
        "GRADCAM_WORKER_ALLOW_HOSTS": "127.0.0.0/8:*",
        "GRADCAM_WORKER_LOW_SPEED_LIMIT": "0",
        "GRADCAM_WORKER_WEIGHTS_CACHE_DIR": str(folder / "weights"),
        "GRADCAM_WORKER_LEASE_S": "10",
        "GRADCAM_WORKER_RUN_DIR": str(folder),
    }
    with own_stack(folder, settings) as stack:
        stack.start_worker()
        first = Client.from_env()
        first.wait(first.submit([PHOTO], **SMALL), timeout_s=120)
        yield stack


@pytest.fixture
def client(patient: Stack) -> Client:
    return Client.from_env()


def slow(client: Client, server: _Server, path: str = "", **options: object) -> str:
    uri = f"http://127.0.0.1:{server.server_port}/slow{path}"
    given = {"network": NETWORK, "weight_path": uri, "outputs": ["cam"], "chunk_size": 1, **options}
    return client.submit([PHOTO] * 2, **given)  # type: ignore[arg-type]


def weights_of(seed: int) -> bytes:
    torch.manual_seed(seed)
    file = BytesIO()
    torch.save(shufflenet_v2_x0_5(num_classes=3).state_dict(), file)
    return file.getvalue()


def test_other_jobs_go_on_while_weights_are_fetched_and_whoever_stops_that_one_is_heard(
    client: Client, server: _Server
) -> None:
    """A fetch may take half an hour; neither a job of high priority nor `cancel` and `pause` wait for its end."""
    jobs = [slow(client, server, f"/{number}", queue="low") for number in range(4)]
    eventually(lambda: server.reading == 4)
    urgent = client.submit([PHOTO] * 2, queue="high", **SMALL)
    assert client.wait(urgent, timeout_s=60).state is JobState.SUCCEEDED
    # Four at most are fetched for. One of a higher priority goes first; of its own none gives way.
    server.content = weights_of(0)
    uri = f"http://127.0.0.1:{server.server_port}/w.pth"
    fetched = client.submit([PHOTO], queue="high", network=NETWORK, weight_path=uri, outputs=["cam"])
    assert client.wait(fetched, timeout_s=60).state is JobState.SUCCEEDED
    eventually(lambda: server.reading == 4)
    for job in jobs[:2]:
        client.cancel(job)
    for job in jobs[2:]:
        client.pause(job)
    assert eventually(lambda: server.reading == 0) < 10
    assert [client.wait(job, timeout_s=20).state for job in jobs[:2]] == [JobState.CANCELLED] * 2
    status = client.status(jobs[2])
    assert (status.state, status.failed, status.chunks.in_flight) == (JobState.PAUSED, 0, 0)
    for job in jobs[2:]:
        client.cancel(job)


def test_a_job_is_explained_by_the_weights_that_its_first_worker_had(client: Client, server: _Server) -> None:
    """The digest is in the job before any picture is; a worker that finds another one explains nothing."""
    server.content = weights_of(1)
    digest = hashlib.sha256(server.content).hexdigest()
    uri = f"http://127.0.0.1:{server.server_port}/w.pth?token=sesame"
    job = client.submit([PHOTO], network=NETWORK, weight_path=uri, outputs=["cam"])
    assert client.wait(job, timeout_s=60).weights_sha256 == digest
    assert json.loads(gradcam("status", job, "--json").stdout)["weights_sha256"] == digest
    summary = json.loads(client.storage.get(keys.summary(client.storage.prefix, job)))
    assert summary["status"]["weights_sha256"] == summary["found"]["weights_sha256"] == digest

    # New content at an address whose model is in memory: a new job gets what lies there now.
    server.content = weights_of(2)
    again = client.submit([PHOTO], network=NETWORK, weight_path=uri, outputs=["cam"])
    changed = hashlib.sha256(server.content).hexdigest()
    assert client.wait(again, timeout_s=60).weights_sha256 == changed


def test_weights_that_have_changed_since_the_job_began_fail_it_in_a_sentence(
    patient: Stack, client: Client, server: _Server
) -> None:
    """Half of a job's pictures by other weights would be nobody's result; what the first worker pinned counts."""
    server.content = weights_of(3)
    uri = f"http://127.0.0.1:{server.server_port}/w.pth"
    with asleep(patient):
        job = client.submit([PHOTO], network=NETWORK, weight_path=uri, outputs=["cam"])
        found = client.table.queries.spec(job)
        assert found is not None
        claim = client.table.claim(job, 0, found[0], claim_id="another", lease_s=60)
        assert claim is not None
        assert client.table.pin_weights(claim, MISSING) == MISSING
        client.table.release(claim)
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.weights_sha256) == (JobState.FAILED, MISSING)
    digest = hashlib.sha256(server.content).hexdigest()
    assert status.error == (
        f"the weights at {uri} have changed: the job is explained by those of SHA-256 {MISSING}, and there are now "
        f"those of {digest}; put the former back, or submit the images as another job"
    )
    # Nothing was explained by them: a retry begins with what is there.
    client.retry(job)
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.weights_sha256) == (JobState.SUCCEEDED, digest)


def test_a_digest_behind_an_address_is_the_jobs_word(client: Client, server: _Server) -> None:
    server.content = weights_of(3)
    digest = hashlib.sha256(server.content).hexdigest()
    uri = f"http://127.0.0.1:{server.server_port}/w.pth"
    job = client.submit([PHOTO], network=NETWORK, weight_path=f"{uri}#sha256={digest.upper()}", outputs=["cam"])
    status = client.wait(job, timeout_s=60)
    assert (status.state, status.weights_sha256) == (JobState.SUCCEEDED, digest)
    other = client.submit([PHOTO], network=NETWORK, weight_path=f"{uri}#sha256={MISSING}", outputs=["cam"])
    status = client.wait(other, timeout_s=60)
    assert (status.state, status.weights_sha256) == (JobState.FAILED, None)
    assert status.error == (
        f"the weights at {uri} have the SHA-256 {digest}, not {MISSING}, as #sha256= says: correct --weight-path"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_weights_that_cannot_be_fetched_are_the_fault_of_their_job_and_not_of_the_worker(
    patient: Stack, client: Client, host: str
) -> None:
    """The job fails in a sentence; another user's job sees nothing of it, and no probe takes the worker for faulty."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    uri = f"http://{host}:{port}/w.pth" if host[0].isdigit() else f"http://{host}/w.pth"
    bad = client.submit([PHOTO], network=NETWORK, weight_path=uri, outputs=["cam"])
    good = client.submit([PHOTO] * 12, chunk_size=1, **SMALL)
    problems = {status.problem for status in client.watch(good)}
    assert client.status(good).state is JobState.SUCCEEDED
    assert problems == {None}

    status = client.wait(bad, timeout_s=20)
    assert status.state is JobState.FAILED
    assert f"the weights cannot be fetched: {uri}" in (status.error or "")
    assert client.table.redis.hlen(keys.PROBLEMS) == 0
    assert worker_check().returncode == 0
    assert "cannot work" not in gradcam("doctor").stdout
    with serving() as address, urllib.request.urlopen(f"{address}/metrics", timeout=10) as page:
        assert 'gradcam_workers{state="ready"} 1.0' in page.read().decode()
    # It paused for nobody.
    assert "action=worker_fault" not in (patient.directory / "worker.log").read_text()


def test_a_worker_that_is_stopped_does_not_wait_for_weights(patient: Stack, client: Client, server: _Server) -> None:
    """The last test of this module: its worker is gone afterwards."""
    job = slow(client, server)
    eventually(lambda: server.reading == 1)
    worker = patient.worker
    assert worker is not None
    assert worker.process is not None
    worker.process.terminate()
    assert eventually(lambda: worker.process is None or worker.process.poll() is not None) < 12
    assert worker.process.poll() == 0
    status = client.status(job)
    assert (status.state, status.failed, status.chunks.in_flight) == (JobState.RUNNING, 0, 0)
    client.cancel(job)
