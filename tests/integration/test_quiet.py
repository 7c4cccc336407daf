"""A worker asks Redis a few times a second, whatever keeps it from working: nothing goes in a circle."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command import worker_check as check
from fault_proxy import HttpFaultProxy
from s3_servers import proxied
from stacks import SMALL, children_of, eventually, mains_of, own_stack

from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.broker import celery_app
from producer.jobs.model.states import JobState
from worker.supervise import run_dirs

PHOTO = str(Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png")
NETWORK = "efficientnet_lite0"
#: Commands a second, those inside scripts counted, too: a look at a job asks for each of its parts, whether it is as we
#: write it, which makes about 300 of a worker with a job that it cannot do. A busy loop has thousands.
QUIET = 600.0
_WATCHED_S = 2.0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quiet-run")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, run_dir: Path) -> Iterator[Stack]:
    """Servers of our own: whoever else asks Redis would be counted."""
    settings = {"GRADCAM_WORKER_RUN_DIR": str(run_dir), "GRADCAM_WORKER_INTERVAL_S": "1"}
    with own_stack(tmp_path_factory.mktemp("quiet"), settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def store(own: Stack) -> Iterator[HttpFaultProxy]:
    with proxied(own.s3) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def launcher(own: Stack, store: HttpFaultProxy) -> Iterator[Worker]:
    """One process, whose store is behind the proxy."""
    environment = {**own.environment(), "GRADCAM_S3_ENDPOINT_URL": f"http://127.0.0.1:{store.port}"}
    worker = Worker(own.directory / "worker.log", environment, processes=1, devices="cpu")
    worker.start()
    try:
        eventually(lambda: check().returncode == 0 and "is idle" in check().stdout, within_s=120, every_s=0.5)
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def client(own: Stack) -> Client:
    assert own.redis.alive
    return Client.from_env()


def commands_a_second(client: Client) -> float:
    """How often Redis is asked, but for this."""

    def count() -> int:
        return int(client.table.redis.info("stats")["total_commands_processed"])

    before, started = count(), time.monotonic()
    time.sleep(_WATCHED_S)
    return (count() - before - 1) / (time.monotonic() - started)


def submitted(client: Client, images: int = 4, **options: object) -> str:
    return client.submit([PHOTO] * images, **{**SMALL, "chunk_size": 1, **options})


def taken_away(run_dir: Path, what: str) -> None:
    """What tidiers of temporary files do: they take what has not been used for long, files first."""
    (own,) = run_dirs.living(run_dir)
    if what == "the files":
        for path in own.rglob("*"):
            if path.is_file():
                path.unlink()
    else:
        folder = own if what == "the folder" else own.parent
        with suppress(OSError):
            shutil.rmtree(folder)
        # What a process has written meanwhile goes as well.
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("launcher")
def test_an_idle_worker_asks_redis_a_few_times_a_second(client: Client) -> None:
    assert commands_a_second(client) < QUIET


@pytest.mark.parametrize("what", ["the files", "the folder", "the folder of all launchers"])
@pytest.mark.usefixtures("launcher")
def test_a_run_folder_that_is_tidied_away_is_made_again_and_no_work_waits_for_it(
    client: Client, run_dir: Path, what: str
) -> None:
    taken_away(run_dir, what)
    job = submitted(client)
    status = client.wait(job, timeout_s=30)
    assert (status.state, status.done) == (JobState.SUCCEEDED, 4)
    assert commands_a_second(client) < QUIET
    eventually(lambda: check().returncode == 0, within_s=10, every_s=0.5)
    assert "is idle" in check().stdout
    assert len(run_dirs.living(run_dir)) == 1


@pytest.mark.usefixtures("launcher")
def test_a_paused_job_with_messages_keeps_nobody_busy(client: Client, own: Stack) -> None:
    job = submitted(client, 40, queue="low")
    client.pause(job)
    app = celery_app.make_app(own.redis.url)
    for chunk in range(40):
        celery_app.publish(app, job, chunk, queue="recovery", published_at=client.table.registry.now())
    time.sleep(1)
    assert commands_a_second(client) < QUIET
    client.cancel(job)


@pytest.mark.usefixtures("launcher")
def test_a_job_of_another_version_keeps_nobody_busy(client: Client) -> None:
    """It is left to a worker of that version, which may come; until then it waits."""
    job = submitted(client, 40)
    client.pause(job)
    name = f"gradcam:job:{job}"
    spec = json.loads(client.table.redis.hget(name, "spec") or b"{}")
    client.table.redis.hset(name, "spec", json.dumps({**spec, "version": 99}))
    client.table.redis.hset(name, "state", "running")
    time.sleep(2)
    assert commands_a_second(client) < QUIET
    client.table.redis.flushall()


@pytest.mark.usefixtures("launcher")
def test_a_job_that_cannot_be_loaded_keeps_nobody_busy(client: Client, tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"no weights at all" * 100)
    job = submitted(client, weight_path=str(tmp_path / "junk.pth"))
    eventually(lambda: client.status(job).ended or client.status(job).problem, within_s=60)
    time.sleep(1)
    assert commands_a_second(client) < QUIET


@pytest.mark.usefixtures("launcher")
def test_a_worker_with_wrong_credentials_waits_and_goes_on_when_they_are_right(
    client: Client, store: HttpFaultProxy
) -> None:
    store.answer_errors(403, "InvalidAccessKeyId")
    job = submitted(client)
    eventually(lambda: client.status(job).problem, within_s=60)
    assert commands_a_second(client) < QUIET
    assert store.counts["answer_errors"] < 200
    assert client.status(job).done == 0
    store.passing()
    assert client.wait(job, timeout_s=60).done == 4


def test_a_worker_whose_folder_is_gone_is_stopped_like_any_other(
    launcher: Worker, client: Client, run_dir: Path
) -> None:
    job = client.submit([PHOTO] * 400, network=NETWORK, chunk_size=400, outputs=["cam"])
    eventually(lambda: client.status(job).done, within_s=60)
    children, mains = children_of(launcher), mains_of(launcher)
    taken_away(run_dir, "the folder of all launchers")
    assert launcher.process is not None
    started = time.monotonic()
    launcher.process.terminate()
    assert launcher.process.wait(40) == 0
    assert time.monotonic() - started < 15  # the batch in hand, not the chunk
    assert not [process for process in (*children, *mains) if process.is_running()]
    # What it had in hand was given back, and not lost with it.
    assert client.table.redis.zcard(f"gradcam:job:{job}:leases") == 0
    assert list(run_dir.rglob("*.busy*")) == []
