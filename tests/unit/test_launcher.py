from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.settings import WorkerSettings
from worker.supervise import cores
from worker.supervise.launcher import command, environment
from worker.supervise.process_plan import plan

HOST = socket.gethostname().split(".")[0]


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers as the driver's tool does; the second GPU is divided into two instances."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncat <<END\n"
        "GPU 0: NVIDIA L4 (UUID: GPU-aaaa)\n"
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-cccc)\n"
        "  MIG 3g.20gb     Device  1: (UUID: MIG-dddd)\n"
        "END\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("two_gpus")
def test_processes_are_named_for_host_and_device_and_pinned_by_uuid() -> None:
    assert [(process.device, process.visible, process.name) for process in plan("auto", 1)] == [
        ("cuda", "GPU-aaaa", f"{HOST}-gpu0"),
        ("cuda", "MIG-cccc", f"{HOST}-gpu1-mig0"),
        ("cuda", "MIG-dddd", f"{HOST}-gpu1-mig1"),
    ]


@pytest.mark.usefixtures("two_gpus")
def test_two_processes_share_a_gpu_where_nobody_says_how_many() -> None:
    assert [(process.visible, process.name) for process in plan("cuda:0")] == [
        ("GPU-aaaa", f"{HOST}-gpu0-0"),
        ("GPU-aaaa", f"{HOST}-gpu0-1"),
    ]


@pytest.mark.usefixtures("two_gpus")
def test_processes_on_gpus_share_the_threads_and_may_run_on_all_cores() -> None:
    planned = plan("cuda", 3)
    assert [process.cores for process in planned] == [()] * 9
    assert sum(process.threads for process in planned) <= max(len(cores.usable()), 9)


@pytest.mark.usefixtures("no_gpu")
def test_one_process_has_the_cpu_where_nobody_says_how_many() -> None:
    (process,) = plan("auto")
    assert (process.device, process.visible, process.name, process.cores) == ("cpu", "", f"{HOST}-cpu", ())
    assert 1 <= process.threads <= len(cores.usable())


@pytest.mark.usefixtures("no_gpu")
def test_several_processes_share_out_the_cores() -> None:
    first, second = plan("cpu", 2)
    assert [first.name, second.name] == [f"{HOST}-cpu-0", f"{HOST}-cpu-1"]
    if len(cores.usable()) > 1:
        assert {*first.cores, *second.cores} == set(cores.usable())
        assert not {*first.cores} & {*second.cores}
    assert first.threads <= len(first.cores)


@pytest.mark.usefixtures("two_gpus")
def test_a_process_sees_its_device_and_queues_and_no_secret_stands_in_its_command(tmp_path: Path) -> None:
    process = plan("cuda:1", 1)[0]
    outer = {"GRADCAM_REDIS_URL": "redis://:hunter2@localhost", "A": "b"}
    made = environment(process, ("high", "low"), tmp_path / "drain", outer)
    assert made["CUDA_VISIBLE_DEVICES"] == "MIG-cccc"
    assert made["GRADCAM_WORKER_DEVICE"] == "cuda"
    assert made["GRADCAM_WORKER_QUEUES"] == "high,low"
    assert made["OMP_NUM_THREADS"] == str(process.threads)
    assert made["A"] == "b"
    assert "hunter2" not in " ".join(command(process, ("high", "low")))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("devices", "told"), [("cuda:0", "gpu0"), ("cuda:1", "gpu1-mig0"), ("cpu", "cpu")])
def test_a_process_tells_which_gpu_or_part_of_one_it_has(
    devices: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = environment(plan(devices, 1)[0], ("high",), tmp_path / "drain", {"GRADCAM_WORKER_PLACE": "gpu7"})
    for name in ("GRADCAM_WORKER_DEVICE", "GRADCAM_WORKER_PLACE"):
        monkeypatch.setenv(name, made[name])
    assert WorkerSettings().told_device == told


@pytest.mark.usefixtures("no_gpu")
def test_what_dead_processes_left_is_read_before_the_classes_that_were_asked_for() -> None:
    made = command(plan("cpu")[0], ("low", "high"))
    assert made[made.index("--queues") + 1] == "recovery,low,high"


def test_queues_reach_the_worker_by_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings().queues == ("high", "default", "low")
    monkeypatch.setenv("GRADCAM_WORKER_QUEUES", "low, high")
    assert WorkerSettings().queues == ("low", "high")


_LAUNCHER = """
import logging, signal, sys
from pathlib import Path
from worker.supervise.launcher import Launcher
from worker.supervise.process_plan import PlannedProcess
logging.basicConfig(level=logging.INFO)
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[2]))
sys.exit(Launcher([PlannedProcess("one", "cpu", "", 1)], grace_s=1, run_dir=Path(sys.argv[1])).run())
"""


@pytest.mark.parametrize(
    ("hangup", "ends_it"),
    [
        ("SIG_DFL", signal.SIGHUP),
        ("SIG_DFL", signal.SIGINT),
        ("SIG_IGN", signal.SIGINT),
        ("SIG_IGN", signal.SIGTERM),
    ],
)
def test_a_launcher_ends_by_a_signal_that_its_starter_does_not_have_it_ignore(
    tmp_path: Path, hangup: str, ends_it: signal.Signals
) -> None:
    """`nohup gradcam-worker &` ended with its terminal."""
    command = [sys.executable, "-c", _LAUNCHER, str(tmp_path), hangup]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as launcher:
        assert launcher.stderr is not None
        while "action=starting" not in launcher.stderr.readline():
            assert launcher.poll() is None
        if hangup == "SIG_IGN":
            launcher.send_signal(signal.SIGHUP)
            time.sleep(1)
            assert launcher.poll() is None
        launcher.send_signal(ends_it)
        _, log = launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    assert log.count("action=draining") == 1
