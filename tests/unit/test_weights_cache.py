"""Processes are real here: locks are the kernel's, and so is what a killed one leaves."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pytest
from prometheus_client import REGISTRY

from producer.jobs.model.errors import FetchError, FetchTimeout, JobError, NotHere, WorkerError
from worker.models.weights_cache import Fetch, WeightsFiles
from worker.supervise.weights_folder import complaint, default_folder

DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


class _Served:
    """Gives out the content of each address, and remembers what was asked for."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content, self.asked = content, list[str]()

    def __call__(self, uri: str, file: BinaryIO, _timeout_s: float) -> None:
        self.asked.append(uri)
        file.write(self.content[uri])


def _files(folder: Path, fetch: Fetch, max_bytes: int = 2**30, timeout_s: float = 60.0) -> WeightsFiles:
    return WeightsFiles(folder / "kept", max_bytes, fetch, timeout_s)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "kept").iterdir() if path.suffix != ".lock")


def _sized(name: str, size: int) -> tuple[bytes, str]:
    data = name.encode() * size
    return data, hashlib.sha256(data).hexdigest()


# --- content ----------------------------------------------------------------------------------------------------------


def test_a_file_whose_digest_is_known_is_fetched_once(tmp_path: Path) -> None:
    served = _Served({"s3://a/w": DATA})
    for _ in range(3):
        with _files(tmp_path, served).file("s3://a/w", DIGEST) as path:
            assert path.read_bytes() == DATA
    assert served.asked == ["s3://a/w"]
    assert _names(tmp_path) == [DIGEST]


def _counted(found: str) -> float:
    return REGISTRY.get_sample_value("gradcam_weights_files_total", {"found": found}) or 0.0


def test_what_others_fetched_and_what_could_not_be_is_not_counted_as_fetched(tmp_path: Path) -> None:
    fetching = threading.Event()

    def slowly(_uri: str, file: BinaryIO, _timeout_s: float) -> None:
        fetching.set()
        time.sleep(0.5)
        file.write(DATA)

    def use() -> None:
        with _files(tmp_path, slowly).file("s3://a/w", DIGEST):
            pass

    before = [_counted("fetched"), _counted("disk")]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use)
        assert fetching.wait(10)
        second = pool.submit(use)
        first.result()
        second.result()
    assert [_counted("fetched"), _counted("disk")] == [before[0] + 1, before[1] + 1]
    with pytest.raises(JobError), _files(tmp_path, slowly).file("s3://a/w", "0" * 64):
        pass
    use()
    assert [_counted("fetched"), _counted("disk")] == [before[0] + 1, before[1] + 2]


def test_the_same_content_at_another_address_is_not_fetched_again(tmp_path: Path) -> None:
    served = _Served({"s3://a/w": DATA})
    files = _files(tmp_path, served)
    with files.file("s3://a/w", DIGEST), files.file("s3://b/w", DIGEST) as path:
        assert path.read_bytes() == DATA
    assert served.asked == ["s3://a/w"]


def test_an_address_of_unknown_content_is_asked_each_time(tmp_path: Path) -> None:
    served = _Served({"https://a/w": DATA})
    files = _files(tmp_path, served)
    with files.file("https://a/w") as path:
        assert path.read_bytes() == DATA
    served.content["https://a/w"] = b"new"
    with files.file("https://a/w") as path:
        assert path.read_bytes() == b"new"
    with files.file("s3://uploaded", DIGEST) as path:  # fetched before under another address
        assert path.read_bytes() == DATA
    assert served.asked == ["https://a/w"] * 2


def test_a_broken_file_is_fetched_anew(tmp_path: Path) -> None:
    served = _Served({"s3://a/w": DATA})
    files = _files(tmp_path, served)
    with files.file("s3://a/w", DIGEST) as path:
        pass
    path.write_bytes(DATA[:-1] + b"?")
    with files.file("s3://a/w", DIGEST) as path:
        assert path.read_bytes() == DATA
    assert len(served.asked) == 2


def test_other_content_than_was_uploaded_is_the_jobs_fault_and_not_kept(tmp_path: Path) -> None:
    files = _files(tmp_path, _Served({"s3://a/w?token=secret": b"other"}))
    with (
        pytest.raises(JobError, match="not those that were uploaded: submit them again"),
        files.file("s3://a/w?token=secret", DIGEST),
    ):
        pass
    assert _names(tmp_path) == []


def test_what_cannot_be_fetched_leaves_nothing(tmp_path: Path) -> None:
    def fetch(_uri: str, file: BinaryIO, _timeout_s: float) -> None:
        file.write(b"half")
        raise FetchError("the server broke off")

    with pytest.raises(FetchError, match="broke off"), _files(tmp_path, fetch).file("s3://a/w", DIGEST):
        pass
    assert _names(tmp_path) == []


def test_an_error_of_those_who_read_is_theirs(tmp_path: Path) -> None:
    served = _Served({"s3://a/w": DATA})
    with pytest.raises(OSError, match="mine"), _files(tmp_path, served).file("s3://a/w", DIGEST):
        raise OSError("mine")
    assert served.asked == ["s3://a/w"]


# --- size -------------------------------------------------------------------------------------------------------------


def test_files_used_longest_ago_make_room(tmp_path: Path) -> None:
    sized = {name: _sized(name, 40) for name in "abc"}
    served = _Served({name: data for name, (data, _) in sized.items()})
    files = _files(tmp_path, served, max_bytes=100)
    for name in "abac":
        with files.file(name, sized[name][1]):
            pass
        time.sleep(0.01)
    assert _names(tmp_path) == sorted(sized[name][1] for name in "ac")
    with files.file("b", sized["b"][1]):
        pass
    assert _names(tmp_path) == sorted(sized[name][1] for name in "bc")


def test_a_file_larger_than_the_limit_is_used_and_not_kept(tmp_path: Path) -> None:
    with _files(tmp_path, _Served({"s3://a/w": DATA}), max_bytes=100).file("s3://a/w", DIGEST) as path:
        assert path.read_bytes() == DATA
    assert _names(tmp_path) == []


def test_a_file_that_is_read_stays_in_place(tmp_path: Path) -> None:
    served = _Served({"s3://a/w": DATA, "s3://b/w": b"other"})
    files = _files(tmp_path, served, max_bytes=100)
    with files.file("s3://a/w", DIGEST) as path:
        with files.file("s3://b/w"):
            assert path.exists()
        assert path.read_bytes() == DATA
    with files.file("s3://b/w"):
        pass
    assert not path.exists()


def test_a_file_that_is_read_stays_when_others_fetch_the_same(tmp_path: Path) -> None:
    """The second had replaced the file of the first, which so lost its lock on what lay there then."""
    files = _files(tmp_path, _Served({"s3://a/w": DATA, "https://b/w": DATA}), max_bytes=100)
    with files.file("s3://a/w", DIGEST) as path:
        with files.file("https://b/w"):
            pass
        assert path.read_bytes() == DATA


# --- faults -----------------------------------------------------------------------------------------------------------


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kept").write_text("a file")
    with _files(tmp_path, _Served({"s3://a/w": DATA})).file("s3://a/w", DIGEST) as path:
        assert path.read_bytes() == DATA
    assert not path.exists()
    (warning,) = _warnings(caplog)
    assert warning.startswith("action=weights_not_kept Weights files cannot be kept in ")


def test_why_weights_cannot_be_kept_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = complaint(tmp_path / "file" / "weights")
    assert said.startswith(f"Weights files cannot be kept in {tmp_path}/file/weights (Not a directory), so ")
    assert complaint(tmp_path / "new" / "weights") == ""
    assert list((tmp_path / "new" / "weights").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kept").mkdir()
    os.chown(tmp_path / "kept", 12345, -1)
    with _files(tmp_path, _Served({"s3://a/w": DATA})).file("s3://a/w", DIGEST) as path:
        assert path.read_bytes() == DATA
    assert _names(tmp_path) == []
    assert "belongs to somebody else" in _warnings(caplog)[0]


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o755)
    with _files(tmp_path, _Served({"s3://a/w": DATA})).file("s3://a/w", DIGEST):
        pass
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_on_a_full_disk_what_is_kept_makes_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = _Served({"s3://a/w": DATA, "s3://b/w": b"other"})
    with _files(tmp_path, served).file("s3://b/w"):
        pass

    def fetch(uri: str, file: BinaryIO, timeout_s: float) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            served(uri, full if Path(file.name).parent == tmp_path / "kept" else file, timeout_s)

    with _files(tmp_path, fetch).file("s3://a/w", DIGEST) as path:
        assert path.read_bytes() == DATA
    assert _names(tmp_path) == []
    assert "No space left" in _warnings(caplog)[0]


def test_a_machine_whose_disks_are_all_full_is_not_the_jobs_fault(tmp_path: Path) -> None:
    def fetch(_uri: str, _file: BinaryIO, _timeout_s: float) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkerError, match=r"^weights can be written neither to .*kept nor to .*No space left"):
        _files(tmp_path, fetch).file("s3://a/w", DIGEST).__enter__()


def test_waiting_for_another_process_has_an_end_and_is_no_fault_of_this_worker(tmp_path: Path) -> None:
    files = _files(tmp_path, _Served({"s3://a/w": DATA}), timeout_s=0.3)
    (tmp_path / "kept").mkdir()
    with (tmp_path / "kept" / f"{DIGEST[:4]}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(NotHere, match="another process has been fetching weights"):
            files.file("s3://a/w", DIGEST).__enter__()


def test_a_job_is_not_to_blame_for_time_spent_waiting(tmp_path: Path) -> None:
    def fetch(_uri: str, _file: BinaryIO, timeout_s: float) -> None:
        if timeout_s > 1:
            time.sleep(1.5)
        raise FetchTimeout("it takes too long")

    files = _files(tmp_path, fetch, timeout_s=2.0)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(files.file("s3://a/w", DIGEST).__enter__) for _ in range(2))
        errors = {type(future.exception()) for future in (first, second)}
    assert errors == {FetchTimeout, NotHere}


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder() == Path("/cache/gradcam-worker/weights")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_folder() == Path("/home/ann/.cache/gradcam-worker/weights")


# --- processes --------------------------------------------------------------------------------------------------------

_PROGRAM = """
import sys, urllib.request
from pathlib import Path
from worker.models.weights_cache import WeightsFiles

def fetch(uri, file, timeout_s):
    with urllib.request.urlopen(uri, timeout=timeout_s) as answer:
        while piece := answer.read(2**16):
            file.write(piece)
            file.flush()

folder, uri, digest = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with WeightsFiles(Path(folder), 2**30, fetch, 60.0).file(uri, digest) as path:
    print(len(path.read_bytes()), flush=True)
"""


class _Server(ThreadingHTTPServer):
    """Sends the weights slowly, and counts."""

    asked = 0
    #: Set as soon as half of an answer is out; the rest goes out when `go_on` is.
    half_sent, go_on = threading.Event(), threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        try:
            self.wfile.write(DATA[: len(DATA) // 2])
            self.wfile.flush()
            self.server.half_sent.set()
            self.server.go_on.wait(60)
            self.wfile.write(DATA[len(DATA) // 2 :])
        except OSError:  # the process was killed
            return

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.half_sent, running.go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=partial(running.serve_forever, 0.05))
        thread.start()
        yield running
        running.go_on.set()
        running.shutdown()
        thread.join()


def _process(folder: Path, server: _Server) -> subprocess.Popen[str]:
    arguments = [str(folder / "kept"), f"http://127.0.0.1:{server.server_port}/w", DIGEST]
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path, server: _Server) -> None:
    processes = [_process(tmp_path, server) for _ in range(3)]
    assert [_read(process) for process in processes] == ["ready"] * 3
    for process in processes:
        _go(process)
    assert server.half_sent.wait(60)
    time.sleep(0.5)  # for the others to come to the lock, or to the server if there were none
    server.go_on.set()
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{len(DATA)}\n"] * 3
    assert server.asked == 1
    assert _names(tmp_path) == [DIGEST]


def test_what_a_killed_process_left_is_cleaned_up_by_the_next(tmp_path: Path, server: _Server) -> None:
    killed, waiting = (_process(tmp_path, server) for _ in range(2))
    assert [_read(killed), _read(waiting)] == ["ready"] * 2
    _go(killed)
    assert server.half_sent.wait(60)
    _go(waiting)
    (partial_file,) = (tmp_path / "kept").glob("*.partial")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert partial_file.exists()
    server.go_on.set()
    assert waiting.communicate(timeout=60)[0] == f"{len(DATA)}\n"
    assert _names(tmp_path) == [DIGEST]


def test_what_a_killed_process_left_of_another_file_is_removed_too(tmp_path: Path) -> None:
    files = _files(tmp_path, _Served({"s3://a/w": DATA}))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "00.partial").write_bytes(b"half")
    (tmp_path / "kept" / "01.partial").write_bytes(b"being fetched")
    with (tmp_path / "kept" / "01.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with files.file("s3://a/w", DIGEST):
            pass
    assert _names(tmp_path) == sorted([DIGEST, "01.partial"])
