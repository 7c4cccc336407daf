"""What `gradcam-worker` writes to its log from start to stop, in both formats: every line, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import skimage
from budget import PROFILE
from command import gradcam
from stacks import SMALL, children_of, eventually, mains_of, own_stack

from deploy.stack import Worker
from producer.client.client import Client

if TYPE_CHECKING:
    from deploy.stack import Stack

CAT = Path(skimage.__file__).parent / "data" / "chelsea.png"
LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<worker>\S+) (?P<level>INFO|WARNING|ERROR|CRITICAL) "
    r"action=(?P<action>\w+) (?P<message>.+)"
)

KEYS = ("time", "worker", "level", "action", "job", "chunk", "message", "traceback")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers of our own; a worker there cannot keep weights files, since their folder would lie in a file."""
    directory = tmp_path_factory.mktemp("logs")
    (directory / "file").touch()
    settings = {
        "GRADCAM_WORKER_RUN_DIR": str(tmp_path_factory.mktemp("run")),
        "GRADCAM_WORKER_WEIGHTS_CACHE_DIR": str(directory / "file" / "weights"),
        # On a busy machine a shorter one runs out while a model is loaded; then nobody needs to be told of a death.
        "GRADCAM_WORKER_LEASE_S": "10",
    }
    with own_stack(directory, settings) as stack:
        yield stack


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.cli", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def life_of_a_worker(own: Stack, log: Path, log_format: str) -> list[str]:
    """A worker with two processes: a child is killed at work, a whole process is killed, Redis dies, then all stop.

    Returns:
        The lines of its log: stdout and stderr of all its processes.
    """
    environment = {**own.environment(), "GRADCAM_LOG": log_format}
    worker = Worker(log, environment, processes=2, devices="cpu")
    worker.start()

    def said(words: str, times: int = 1) -> None:
        eventually(lambda: log.read_text().count(words) >= times, within_s=120, every_s=0.2)

    try:
        said("The worker is ready", 2)
        client = Client.from_env()
        job = client.submit([CAT] * 200, chunk_size=40, **SMALL)
        said("Loaded in")
        at_work = next(line for line in log.read_text().splitlines() if "Loaded in" in line)
        child = next(one for one in children_of(worker) if one.environ()["GRADCAM_WORKER_NAME"] in at_work)
        other = next(main for main in mains_of(worker) if main.pid != child.ppid())
        child.kill()
        said("Its process died; others get it")
        other.kill()
        said(" ended with code -9 ")
        said("The worker is ready", 3)
        assert client.wait(job, timeout_s=120).done == 200
        own.redis.kill()
        said("Connection refused")
        own.redis.restart()
        eventually(lambda: check("--within-s", "3").returncode == 0, within_s=60, every_s=0.5)
        assert worker.process is not None
        everything = psutil.Process(worker.process.pid).children(recursive=True)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(40) == 0
        eventually(lambda: not [process for process in everything if process.is_running()], within_s=10)
    finally:
        worker.stop()
    return log.read_text().splitlines()


def assert_whole_story(actions: list[str]) -> None:
    assert actions[:3] == ["weights_not_kept", "left_open", "starting"]
    assert {"ready", "model_loaded", "child_died", "reclaimed", "died", "committed", "job_ended"} < set(actions)
    assert "draining" in actions


def test_every_line_of_a_worker_has_the_format(own: Stack, tmp_path: Path) -> None:
    lines = life_of_a_worker(own, tmp_path / "log", "text")
    # A traceback is indented below its record; nothing else is.
    odd = [line for line in lines if not LINE.fullmatch(line) and not re.match(r"  \S", line)]
    assert odd == []
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    assert_whole_story([match["action"] for match in found])
    assert len({match["worker"] for match in found}) == 4  # the launcher, two processes, and a third in place of one


@pytest.mark.skipif(PROFILE == "small", reason="`make test-all` does; test_traces reads a worker's lines of JSON, too")
def test_every_line_of_a_worker_is_an_object_of_json(own: Stack, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [json.loads(line) for line in life_of_a_worker(own, tmp_path / "log", "json")]
    for record in records:
        assert [key for key in record if key in KEYS] == [key for key in KEYS if key in record]
        assert {"time", "worker", "level", "action", "message"} <= set(record)
        assert (datetime.now().astimezone() - datetime.fromisoformat(record["time"])).total_seconds() < 600
    assert_whole_story([record["action"] for record in records])
    (reclaimed,) = [record for record in records if record["action"] == "reclaimed"][:1]
    assert (isinstance(reclaimed["job"], str), isinstance(reclaimed["chunk"], int)) == (True, True)
    assert reclaimed["message"] == "Its process died; others get it."


def test_weights_that_cannot_be_kept_are_told_at_the_start_and_by_the_check(own: Stack, tmp_path: Path) -> None:
    """Else each process fetches them again and again, and nobody knows before the first job."""
    log = tmp_path / "log"
    worker = Worker(log, own.environment(), processes=1, devices="cpu")
    worker.start()
    try:
        eventually(lambda: check().returncode == 0, within_s=30, every_s=0.2)
        folder = own.directory / "file" / "weights"
        note = f"Weights files cannot be kept in {folder} (Not a directory), so each process fetches its own: "
        assert f"WARNING action=weights_not_kept {note}set GRADCAM_WORKER_WEIGHTS_CACHE_DIR to" in log.read_text()
        assert check().stdout.count(note) == 1
    finally:
        worker.stop()


@pytest.mark.usefixtures("own")
def test_a_launcher_that_cannot_go_on_says_so_in_the_format() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "worker.cli", "--devices", "cpu", "--metrics-port", port]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    found = [LINE.fullmatch(line) for line in run.stderr.splitlines()]
    assert [match and match["action"] for match in found] == ["ended"]
    assert f"no metrics can be served at '127.0.0.1', port {port} (" in run.stderr


@pytest.mark.usefixtures("own")
def test_a_format_that_there_is_not_is_refused_by_a_sentence() -> None:
    command = [sys.executable, "-m", "worker.cli", "--devices", "cpu"]
    environment = {**os.environ, "GRADCAM_LOG": "xml"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "GRADCAM_LOG must be text or json" in run.stderr
    gradcam("list", env={"GRADCAM_LOG": "json"})  # one environment serves both
