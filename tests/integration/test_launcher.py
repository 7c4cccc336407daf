"""The command `gradcam-worker` with real processes: queues, cores, probes, and processes that can never work.

What takes its time is begun at once, so that the tests wait for it together.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
import s3_servers
import torch
import torchvision
from command import Run, gradcam
from command import worker_check as check
from stacks import children_of, eventually, frozen, mains_of, own_stack, without_descriptors

from deploy.stack import Worker
from producer.client.client import Client
from producer.jobs.broker import celery_app
from producer.jobs.model import keys
from producer.jobs.model.states import JobState
from worker.supervise.health import Health
from worker.supervise.launcher import GIVEN_UP_AFTER

if TYPE_CHECKING:
    from deploy.stack import Stack

PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
NETWORK = "efficientnet_lite0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, folders: Path) -> Iterator[Stack]:
    """Servers of our own, whose queues nobody else reads."""
    settings = {
        "GRADCAM_WORKER_RUN_DIR": str(folders),
        "GRADCAM_WORKER_COMMIT_EVERY_S": "0.2",
        "GRADCAM_WORKER_ALLOW_BUCKETS": f"{s3_servers.BUCKET}*/open/",
    }
    with own_stack(tmp_path_factory.mktemp("launcher"), settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def doomed(own: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose processes cannot import torch; it begins with the first test, and the last one looks at it."""
    poison = tmp_path_factory.mktemp("poison")
    (poison / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    run_dir = tmp_path_factory.mktemp("doomed")
    environment = {**own.environment(), "GRADCAM_WORKER_RUN_DIR": str(run_dir)}
    environment["PYTHONPATH"] = os.pathsep.join([str(poison), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "worker.cli", "--devices", "cpu"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        yield launcher
        launcher.terminate()


@pytest.fixture(scope="module")
def launcher(own: Stack, doomed: subprocess.Popen[str]) -> Iterator[Worker]:
    """Two processes that work at `high` alone."""
    assert doomed.poll() is None
    log = own.directory / "worker.log"
    worker = Worker(log, own.environment(), processes=2, devices="cpu", options=["--queues", "high"])
    worker.start()
    try:
        eventually(lambda: states(check("--json")) == ["idle"] * 2, within_s=120, every_s=0.5)
        yield worker
    finally:
        worker.stop()


def found(run: Run) -> list[dict[str, Any]]:
    return list(json.loads(run.stdout))


def states(run: Run) -> list[str]:
    return [process["state"] for process in found(run)]


def test_a_probe_tells_those_that_start_from_those_that_read(launcher: Worker, own: Stack) -> None:
    """The fixture has waited until both were idle: a startup probe passes before, since `starting` is well."""
    command = [sys.executable, "-m", "worker.cli", "check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count(" is idle") == 2
    for process in found(check("--json")):
        assert "-cpu-" in process["name"]
        assert (process["device"], process["problem"]) == ("cpu", None)
        assert process["silent_s"] < 60
    log = (own.directory / "worker.log").read_text()
    assert log.count("action=starting") == 2
    assert launcher.alive


def test_processes_share_out_the_cores(launcher: Worker) -> None:
    shares = [set(process.cpu_affinity() or []) for process in mains_of(launcher)]
    ours = os.sched_getaffinity(0)
    assert len(shares) == 2
    assert set.union(*shares) == ours
    if len(ours) > 1:
        assert not set.intersection(*shares)
    for process in children_of(launcher):
        # Each child runs where its parent does, with as many threads of torch as it has cores.
        assert set(process.cpu_affinity() or []) in shares
        assert int(process.environ()["OMP_NUM_THREADS"]) <= max(1, len(process.cpu_affinity() or []))


@pytest.mark.usefixtures("launcher")
def test_workers_of_one_class_leave_the_others_to_wait(own: Stack) -> None:
    client = Client.from_env()
    waiting = [client.submit([PHOTO], network=NETWORK, queue=name) for name in ("default", "low")]
    urgent = client.submit([PHOTO] * 64, network=NETWORK, queue="high", chunk_size=32)
    eventually(lambda: "working" in states(check("--json")), within_s=60)
    assert client.wait(urgent, timeout_s=120).state is JobState.SUCCEEDED
    assert [client.status(job).done for job in waiting] == [0, 0]
    assert client.table.redis.llen(keys.QUEUE_PREFIX + "low") == 1
    # What a dead process left is everybody's, whatever its class.
    published_at = client.table.registry.now()
    client.table.redis.delete(keys.QUEUE_PREFIX + "default", keys.QUEUE_PREFIX + "low")
    app = celery_app.make_app(own.redis.url)
    celery_app.publish(app, waiting[0], 0, queue="recovery", published_at=published_at)
    assert client.wait(waiting[0], timeout_s=60).done == 1
    assert client.status(waiting[1]).done == 0
    client.cancel(waiting[1])


def test_a_process_that_is_frozen_is_silent(launcher: Worker, folders: Path) -> None:
    eventually(lambda: not list(folders.rglob("*.away")))  # on a busy machine it may be connecting just now
    first, second = mains_of(launcher)
    with frozen(first):
        eventually(lambda: "silent" in states(check("--json", "--within-s", "3")), within_s=30, every_s=0.2)
        run = check("--within-s", "3")
        assert run.returncode == 1
        assert "no read of the queues has come back for" in run.stderr
        assert check("--live", "--within-s", "3").returncode == 0
        with frozen(second):
            eventually(lambda: check("--live", "--within-s", "3").returncode == 1, within_s=30, every_s=0.2)
    eventually(lambda: check("--within-s", "3").returncode == 0, within_s=30, every_s=0.2)


def test_a_process_that_says_what_is_wrong_is_faulty(launcher: Worker) -> None:
    drain_file = Path(mains_of(launcher)[0].environ()["GRADCAM_WORKER_DRAIN_FILE"])
    name = mains_of(launcher)[0].environ()["GRADCAM_WORKER_NAME"]
    health = Health(drain_file.with_name(name))
    health.fault("the disk is full")
    run = check()
    assert run.returncode == 1
    assert run.stderr == f"1 of 2 processes cannot work: {name} is faulty: the disk is full\n"
    health.recovered()
    assert check().returncode == 0


def test_a_redis_that_is_away_is_told(launcher: Worker, own: Stack) -> None:
    assert launcher.alive
    own.redis.kill()
    began = time.monotonic()
    try:
        eventually(lambda: states(check("--json", "--within-s", "3")) == ["silent"] * 2, within_s=30, every_s=0.2)
        assert "Redis cannot be reached or read for" in check("--within-s", "3").stderr
        time.sleep(max(0.0, began + 8 - time.monotonic()))  # it is tried again every second, and told each time
        assert check("--live", "--within-s", "5").returncode == 0  # a restart brings no Redis back
    finally:
        own.redis.restart()
    eventually(lambda: check("--within-s", "3").returncode == 0, within_s=60, every_s=0.2)


@pytest.mark.usefixtures("launcher")
def test_weights_of_a_bucket_that_is_not_allowed_fail_the_job_and_uploaded_ones_work(tmp_path: Path) -> None:
    """Before any process is killed: a job waits for the word of one that counts as alive, which is for a minute."""
    client = Client.from_env()
    network = "shufflenet_v2_x0_5"
    torch.save(getattr(torchvision.models, network)().state_dict(), tmp_path / "weights.pth")
    client.storage.put("closed/weights.pth", (tmp_path / "weights.pth").read_bytes())
    client.storage.put("open/weights.pth", (tmp_path / "weights.pth").read_bytes())
    ended = {}
    for weights in (
        client.storage.uri("closed/weights.pth"),
        client.storage.uri("open/weights.pth"),
        tmp_path / "weights.pth",
    ):
        job = client.submit([PHOTO], network=network, weight_path=weights, queue="high", outputs=["cam"])
        ended[str(weights)] = client.wait(job, timeout_s=90)
    closed, *others = ended.values()
    assert closed.state is JobState.FAILED
    assert "GRADCAM_WORKER_ALLOW_BUCKETS of the workers does not name its bucket or prefix" in (closed.error or "")
    assert [status.state for status in others] == [JobState.SUCCEEDED] * 2


def test_a_killed_process_is_dead_until_it_is_started_again(launcher: Worker) -> None:
    before = {process["name"] for process in found(check("--json"))}
    mains_of(launcher)[0].kill()
    eventually(lambda: "dead" in states(check("--json")), within_s=10, every_s=0.05)
    eventually(lambda: states(check("--json")) == ["idle"] * 2, within_s=120, every_s=0.2)
    # Each start has a name of its own.
    assert len(before & {process["name"] for process in found(check("--json"))}) == 1


def test_a_process_that_cannot_be_started_now_is_tried_again_and_the_others_work_on(launcher: Worker) -> None:
    """One fork that failed, for want of memory say, ended the launcher, which killed the healthy processes."""
    assert launcher.process is not None
    running = psutil.Process(launcher.process.pid)
    dying, healthy = mains_of(launcher)
    with without_descriptors(running, left=1):
        dying.kill()
        eventually(lambda: "cannot be started now (Too many open files)" in check().stderr, within_s=20)
        assert sorted(states(check("--json"))) == ["dead", "idle"]
    eventually(lambda: states(check("--json")) == ["idle"] * 2, within_s=120, every_s=0.2)
    assert healthy in mains_of(launcher)


@pytest.mark.usefixtures("launcher")
def test_a_job_reads_its_own_uploads_and_what_is_allowed_and_the_log_says_what_is_not(own: Stack) -> None:
    client = Client.from_env()
    for key in ("open/a.png", "closed/a.png", "jobs/other/inputs/00000000/a.png"):
        client.storage.put(key, PHOTO.read_bytes())
    port = urlsplit(own.s3.endpoint_url).port
    images: list[str | Path] = [
        PHOTO,
        client.storage.uri("open/a.png"),
        client.storage.uri("closed/a.png"),
        client.storage.uri("jobs/other/inputs/00000000/a.png"),
        f"http://127.0.0.1:{port}/a.png",
        "http://no-such-host.invalid/a.png",
    ]
    job = client.submit(images, network=NETWORK, queue="high", outputs=["cam"])
    status = client.wait(job, timeout_s=90)
    assert (status.done, status.failed) == (2, 4)
    failures = {failure.index: failure.message for failure in client.failures(job)}
    assert set(failures) == {2, 3, 4, 5}
    assert all("GRADCAM_WORKER_ALLOW_BUCKETS" in failures[index] for index in (2, 3))
    hosts = [failures[4].replace(f"127.0.0.1:{port}", "H").replace("127.0.0.1", "H")]
    hosts.append(failures[5].replace("no-such-host.invalid", "H"))
    assert hosts[0] == hosts[1]
    log = (own.directory / "worker.log").read_text()
    assert f"action=fetch_refused job={job} Refused: the host no-such-host.invalid: the name is not known." in log
    assert f"job={job} Refused: the host 127.0.0.1: port {port} is neither 80 nor 443" in log
    assert "left_open" not in log
    answers = {row["check"]: row for row in map(json.loads, gradcam("doctor", "--json").stdout.splitlines())}
    assert answers["policy"]["verdict"] == "ok"
    client.table.registry.heartbeat("another", warnings=["Jobs may name any bucket"])
    answers = {row["check"]: row for row in map(json.loads, gradcam("doctor", "--json").stdout.splitlines())}
    assert (answers["policy"]["verdict"], answers["policy"]["words"]) == ("warn", "Jobs may name any bucket (another)")


def test_sigterm_ends_all_and_leaves_nothing(launcher: Worker, folders: Path) -> None:
    assert launcher.process is not None
    everything = psutil.Process(launcher.process.pid).children(recursive=True)
    assert len(everything) >= 4
    started = time.monotonic()
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.process.wait(40) == 0
    assert time.monotonic() - started < 20
    eventually(lambda: not [process for process in everything if process.is_running()], within_s=10)
    run = check()
    assert (run.returncode, run.stdout) == (1, "")
    assert "no launcher" in run.stderr
    assert [path for path in folders.rglob("*") if path.is_file()] == []


def test_a_launcher_that_is_stopped_before_it_starts_a_process_ends_as_one_that_is_stopped_later(own: Stack) -> None:
    """It ended with 130, a failure to whoever starts it again; here it waits for a Redis that is mute."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        environment = own.environment() | {"GRADCAM_REDIS_URL": f"redis://127.0.0.1:{mute.getsockname()[1]}/0"}
        command = [sys.executable, "-m", "worker.cli", "--devices", "cpu"]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
            mute.settimeout(60)
            connection, _ = mute.accept()
            with connection:
                started.terminate()
                _, said = started.communicate(timeout=30)
    assert (started.returncode, "action=stopped" in said) == (0, True), said


def test_processes_whose_launcher_is_killed_as_they_start_end_as_well(own: Stack, tmp_path: Path) -> None:
    """They had not looked yet who their parent was, took the next one for it, and nobody could stop them."""
    worker = Worker(tmp_path / "log", own.environment(), processes=1, devices="cpu")
    worker.start()
    eventually(lambda: mains_of(worker), within_s=60, every_s=0.01)
    (main,) = mains_of(worker)
    worker.kill()
    try:
        eventually(lambda: not main.is_running() or main.status() == psutil.STATUS_ZOMBIE, within_s=90, every_s=0.2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)


def test_processes_that_can_never_work_are_given_up_and_the_launcher_ends(doomed: subprocess.Popen[str]) -> None:
    _, log = doomed.communicate(timeout=120)
    assert doomed.returncode == 4
    assert log.count("action=starting") == GIVEN_UP_AFTER
    last = log.splitlines()[-1]
    assert " launcher ERROR action=ended The launcher ends: no process is left; " in last
    assert "ImportError: libcudart.so.12: cannot open shared object file" in last
    assert "Traceback" not in log
