"""One supervised Celery worker a device process: started with its device, restarted when it dies, stopped cleanly."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from producer.jobs.errors import UsageError, WorkerError
from producer.jobs.queue import QUEUES

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.2
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 30.0
#: A process that lived this long had started well; its next death is a new story.
_HEALTHY_AFTER_S = 60.0


#: What asks us to stop; SIGHUP is a terminal that was closed.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Slot:
    """Where one worker process runs."""

    name: str
    #: `cpu` or `cuda`.
    device: str
    #: What CUDA_VISIBLE_DEVICES is set to: a GPU's UUID, or nothing at all.
    visible: str
    #: Threads of torch; workers times threads stay within the cores.
    threads: int


def plan(devices: str, processes_per_device: int) -> list[Slot]:
    """Decide which processes to start.

    Args:
        devices: `auto` (all GPUs, else the CPU), `cpu`, `cuda` or `cuda:0,1`.
        processes_per_device: How many processes share each device.

    Raises:
        UsageError: The devices are written in no way that is understood.
        WorkerError: A GPU was asked for that is not there.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    host = socket.gethostname().split(".")[0]
    gpus = _chosen_gpus(devices)
    places = [("cuda", f"gpu{index}", uuid) for index, uuid in gpus] or [("cpu", "cpu", "")]
    names = [(kind, f"{place}-{n}", visible) for kind, place, visible in places for n in range(processes_per_device)]
    threads = max(1, cores // len(names))
    return [Slot(f"{host}-{name}", kind, visible, threads) for kind, name, visible in names]


def _chosen_gpus(devices: str) -> list[tuple[int, str]]:
    if devices == "cpu":
        return []
    if devices not in {"auto", "cuda"} and not devices.startswith("cuda:"):
        raise UsageError(f"--devices {devices!r} is not understood: use auto, cpu, cuda or cuda:0,1")
    there = _gpus()
    if devices == "auto":
        return list(enumerate(there))
    if not there:
        raise WorkerError("there is no GPU (`nvidia-smi -L` lists none): use --devices cpu, or install the driver")
    if devices == "cuda":
        return list(enumerate(there))
    return [(index, there[index]) for index in _indices(devices.removeprefix("cuda:"), len(there))]


def _indices(text: str, count: int) -> list[int]:
    try:
        indices = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"--devices cuda:{text} is not understood: give numbers by commas, as cuda:0,1") from None
    missing = [index for index in indices if not 0 <= index < count]
    if missing:
        raise WorkerError(f"there is no GPU {missing[0]}: `nvidia-smi -L` lists 0 to {count - 1}")
    return indices


def _gpus() -> list[str]:
    """UUIDs of the GPUs this process may use, found without a CUDA call: the parent must stay free of CUDA."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if allowed == "" or program is None:
        return []
    query = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    uuids = [line.strip() for line in listed.stdout.splitlines() if line.startswith("GPU-")]
    if allowed is None or listed.returncode != 0:
        return uuids if listed.returncode == 0 else []
    # A device plugin or an outer launcher chose already, by number or by UUID.
    return [uuids[int(a)] if a.isdigit() and int(a) < len(uuids) else a for a in allowed.split(",") if a]


@dataclass
class _Process:
    slot: Slot
    drain_file: Path
    running: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    backoff_s: float = 0.0
    start_at: float = 0.0


@dataclass
class Launcher:
    """Keeps the planned processes running until told to stop."""

    slots: Sequence[Slot]
    grace_s: float
    queues: Sequence[str] = QUEUES
    _processes: list[_Process] = field(default_factory=list)
    _signals: int = 0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; the first drains, the second ends at once. Returns the exit code."""
        with tempfile.TemporaryDirectory(prefix="gradcam-worker-") as folder:
            drain_file = Path(folder) / "drain"
            self._processes = [_Process(slot, drain_file) for slot in self.slots]
            previous = {number: signal.signal(number, self._signalled) for number in _STOPS}
            try:
                while not self._signals:
                    self._keep_running()
                    time.sleep(_LOOK_EVERY_S)
                return self._drain(drain_file)
            finally:
                self._kill()
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _keep_running(self) -> None:
        for process in self._processes:
            if process.running is None:
                if time.monotonic() >= process.start_at:
                    self._start(process)
            elif (code := process.running.poll()) is not None:
                self._died(process, code)

    def _start(self, process: _Process) -> None:
        # Its own each time: what a predecessor says when it ends at last must not be taken for this one's word.
        slot = replace(process.slot, name=f"{process.slot.name}-{secrets.token_hex(2)}")
        log.info("action=starting Starting %s on %s with %d threads.", slot.name, slot.device, slot.threads)
        # Its own session: a Ctrl-C on the terminal reaches the launcher alone, which drains the workers in order.
        process.running = subprocess.Popen(
            command(slot, self.queues), env=environment(slot, process.drain_file, os.environ), start_new_session=True
        )
        process.started = time.monotonic()

    def _died(self, process: _Process, code: int) -> None:
        lived_s = time.monotonic() - process.started
        process.backoff_s = (
            _FIRST_BACKOFF_S if lived_s > _HEALTHY_AFTER_S else min(2 * process.backoff_s or 1.0, _LONGEST_BACKOFF_S)
        )
        process.running, process.start_at = None, time.monotonic() + process.backoff_s
        log.warning(
            "action=died %s ended with code %d after %.0f s; starting it again in %.0f s.",
            process.slot.name,
            code,
            lived_s,
            process.backoff_s,
        )

    def _drain(self, drain_file: Path) -> int:
        log.info("action=draining Finishing the batch in hand; a second signal ends at once.")
        drain_file.touch()
        for process in self._alive():
            process.terminate()
        until = time.monotonic() + self.grace_s
        while self._alive() and time.monotonic() < until and self._signals == 1:
            time.sleep(_LOOK_EVERY_S)
        return 0

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [p.running for p in self._processes if p.running is not None and p.running.poll() is None]

    def _kill(self) -> None:
        for process in self._processes:
            if process.running is not None:
                # The whole session: Celery's child would outlive its parent for a moment otherwise.
                _kill_group(process.running.pid)
                process.running.wait()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def command(slot: Slot, queues: Sequence[str]) -> list[str]:
    """The Celery worker of a slot; no secret is in it."""
    options = f"worker --pool prefork --concurrency 1 --queues {','.join(queues)} --hostname {slot.name}@%h"
    quiet = "--without-gossip --without-mingle --without-heartbeat --loglevel INFO"
    return [sys.executable, "-m", "celery", "--app", "worker.app", "--quiet", *options.split(), *quiet.split()]


def environment(slot: Slot, drain_file: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """What a worker process finds: its device and its threads, set before anything imports torch or OpenCV."""
    return {
        **outer,
        "CUDA_VISIBLE_DEVICES": slot.visible,
        "OMP_NUM_THREADS": str(slot.threads),
        "MKL_NUM_THREADS": str(slot.threads),
        # CPU threads wait asleep, not spinning: the threads that fetch and encode need the cores meanwhile.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GRADCAM_WORKER_NAME": slot.name,
        "GRADCAM_WORKER_DEVICE": slot.device,
        "GRADCAM_WORKER_DRAIN_FILE": str(drain_file),
    }
