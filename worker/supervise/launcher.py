"""One supervised Celery worker a device process: started with its device, restarted when it dies, stopped cleanly."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from producer.jobs.model.errors import WorkerError
from producer.jobs.model.spec import PRIORITIES
from worker.supervise import cgroups, cores, gpus, run_dirs
from worker.supervise.backoff import Backoff
from worker.supervise.grace import LAUNCHER_SHARE
from worker.supervise.health import Health, ListedProcess, publish, published

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.2
#: How often the folder is looked for, and how often it is made to look used: tidiers wait for days.
_KEEP_EVERY_S, _TOUCH_EVERY_S = 1.0, 600.0
#: The folder of the processes' metrics, in the launcher's.
METRICS = "metrics"
#: A process that has failed so often in a row before it was ready is given up: what it lacks does not come by itself.
GIVEN_UP_AFTER = 5
#: How many processes share a GPU where nobody says: fetching, decoding and encoding are bound by the interpreter's lock
#: of one process, and leave a GPU idle meanwhile. On a CPU one process already keeps the cores busy.
PROCESSES_PER_GPU, PROCESSES_PER_CPU = 2, 1

#: What asks us to stop; SIGHUP is a terminal that was closed.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Ends that somebody else wanted; they say nothing of whether the process could have worked.
_WANTED = frozenset({0, -signal.SIGKILL, *(-number for number in _STOPS)})


@dataclass(frozen=True)
class Slot:
    """Where one worker process runs."""

    name: str
    #: `cpu` or `cuda`.
    device: str
    #: What CUDA_VISIBLE_DEVICES is set to: the UUID of a GPU or a MIG instance, or nothing at all.
    visible: str
    #: Threads of torch; workers times threads stay within the cores.
    threads: int
    #: The cores it is pinned to; none when it may run on all.
    cores: tuple[int, ...] = ()
    #: How many processes share the device, this one included.
    sharing: int = 1


def plan(devices: str, processes_per_device: int | None = None) -> list[Slot]:
    """Decide which processes to start.

    Args:
        devices: As `worker.supervise.gpus.find_gpus` reads it.
        processes_per_device: How many processes share each device; where None, 2 share a GPU, and 1 has the CPU.

    Raises:
        UsageError: The devices are written in no way that is understood.
        WorkerError: A GPU was asked for that is not there, or the driver does not work.
    """
    places = gpus.find_gpus(devices)
    each = processes_per_device or (PROCESSES_PER_GPU if places else PROCESSES_PER_CPU)
    there, granted = cores.usable(), cgroups.cpu_cores()
    host = socket.gethostname().split(".")[0]

    def names(device: str) -> list[str]:
        return [f"{host}-{device}-{n}" if each > 1 else f"{host}-{device}" for n in range(each)]

    if places:
        processes = each * len(places)
        threads = cores.threads(len(there) // processes, processes, granted)
        return [Slot(name, "cuda", place.uuid, threads, sharing=each) for place in places for name in names(place.name)]
    if each == 1 or not hasattr(os, "sched_setaffinity"):
        threads = cores.threads(len(there) // each, each, granted)
        return [Slot(name, "cpu", "", threads, sharing=each) for name in names("cpu")]
    shares = cores.share_out(there, each)
    return [
        Slot(name, "cpu", "", cores.threads(len(share), each, granted), share, each)
        for name, share in zip(names("cpu"), shares, strict=True)
    ]


@dataclass
class _Process:
    slot: Slot
    #: The slot's name, and what tells this start from those before.
    name: str = ""
    running: subprocess.Popen[bytes] | None = None
    #: In seconds since 1970, and by the clock that nobody sets.
    started_at: float = 0.0
    started: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)
    start_at: float = 0.0
    #: How often in a row it has failed before it was ready.
    failures: int = 0
    given_up: bool = False
    #: Whether it has been ready; the file that says so may be tidied away.
    ready: bool = False
    #: Why it does not run.
    problem: str | None = None


@dataclass
class Launcher:
    """Keeps the planned processes running until told to stop."""

    slots: Sequence[Slot]
    grace_s: float
    #: The priorities to work at, in the order in which they are read.
    queues: Sequence[str] = PRIORITIES
    run_dir: Path | None = None
    #: Address and port at which metrics are served; not at all without a port.
    metrics: tuple[str, int | None] = ("", None)
    #: Whose jobs are worked off, as `worker.supervise.health.stack_of` says it.
    stack: str = ""
    _own: run_dirs.Folder = field(init=False)
    _processes: list[_Process] = field(default_factory=list)
    _keep_at: float = 0.0
    _touch_at: float = 0.0
    #: Why there is no folder now, as it was told last.
    _homeless: str = ""
    _signals: int = 0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; the first drains, the second ends at once. Returns the exit code.

        Raises:
            WorkerError: Every process has been given up.
        """
        with run_dirs.folder(self.run_dir) as self._own:
            self._processes = [_Process(slot) for slot in self.slots]
            self._serve_metrics()
            previous = {number: signal.signal(number, self._signalled) for number in _STOPS}
            try:
                while not self._signals:
                    self._keep_folder()
                    self._keep_running()
                    if all(process.given_up for process in self._processes):
                        raise WorkerError(f"no process is left; {self._processes[-1].problem}")
                    time.sleep(_LOOK_EVERY_S)
                return self._drain()
            finally:
                self._kill()
                for number, handler in previous.items():
                    signal.signal(number, handler)

    @property
    def _folder(self) -> Path:
        return self._own.path

    def _serve_metrics(self) -> None:
        address, port = self.metrics
        if port is not None:
            from worker.metrics import serve

            self._make_folders()
            serve(self._folder / METRICS, address, port)

    def _keep_folder(self) -> None:
        """Now and then: whoever tidies up temporary files may have taken the folder away, or what is in it."""
        now = time.monotonic()
        if now < self._keep_at:
            return
        self._keep_at = now + _KEEP_EVERY_S
        self._make_folders()
        for process in self._processes:
            process.ready = process.ready or Health(self._folder / process.name).has("ready")
        if not published(self._folder):
            self._tell()
        if now >= self._touch_at:
            self._touch_at = now + _TOUCH_EVERY_S
            self._tell()
            self._own.touch()

    def _make_folders(self) -> None:
        """Make sure that there is where processes say what they do; they work also without."""
        problem = ""
        try:
            if self._own.keep():
                log.warning("action=folder_restored %s was taken away, and is there again.", self._folder)
            (self._folder / METRICS).mkdir(exist_ok=True)
        except WorkerError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{self._folder} cannot be used ({error.strerror})"
        if problem and problem != self._homeless:
            log.error("action=no_folder The processes work on, but no check can see them: %s", problem)
        self._homeless = problem

    @property
    def _drain_file(self) -> Path:
        return self._folder / "drain"

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _keep_running(self) -> None:
        for process in self._processes:
            if process.running is None:
                if not process.given_up and time.monotonic() >= process.start_at:
                    self._start(process)
            elif (code := process.running.poll()) is not None:
                self._died(process, code)

    def _start(self, process: _Process) -> None:
        # Its own each time: what a predecessor says when it ends at last must not be taken for this one's word.
        slot = replace(process.slot, name=f"{process.slot.name}-{secrets.token_hex(2)}")
        on = f" of cores {','.join(map(str, slot.cores))}" if slot.cores else ""
        log.info("action=starting Starting %s on %s with %d threads%s.", slot.name, slot.device, slot.threads, on)
        self._make_folders()
        with cores.pinned(slot.cores):
            # Its own session: a Ctrl-C on the terminal reaches the launcher alone, which drains the workers in order.
            process.running = subprocess.Popen(
                command(slot, self.queues),
                env=environment(slot, self.queues, self._drain_file, os.environ),
                start_new_session=True,
            )
        process.name, process.problem, process.ready = slot.name, None, False
        process.started_at, process.started = time.time(), time.monotonic()
        self._tell()

    def _died(self, process: _Process, code: int) -> None:
        lived_s = time.monotonic() - process.started
        if process.running is not None:
            # Its child, which nobody watches any more: it would share the device with the next one's.
            _kill_group(process.running.pid)
        health = Health(self._folder / process.name)
        why = health.standing_fault() or f"it ended with code {code} after {lived_s:.0f} s"
        if process.ready or health.has("ready"):
            process.failures = 0
        elif code not in _WANTED:
            process.failures += 1
        health.forget()
        process.running = None
        if process.failures >= GIVEN_UP_AFTER:
            process.given_up = True
            process.problem = f"{process.slot.name} is given up, it failed {process.failures} times to get ready: {why}"
            log.error("action=given_up %s", process.problem)
        else:
            delay_s = process.backoff.after(lived_s)
            process.start_at = time.monotonic() + delay_s
            process.problem = f"it is started again in a moment: {why}"
            log.warning(
                "action=died %s ended with code %d after %.0f s; starting it again in %.0f s.",
                process.name,
                code,
                lived_s,
                delay_s,
            )
        self._tell()

    def _tell(self) -> None:
        """Write down which processes there are, for `gradcam-worker check`."""
        publish(
            self._folder,
            [
                ListedProcess(
                    name=process.name,
                    device=process.slot.device,
                    pid=process.running.pid if process.running else None,
                    started_at=process.started_at,
                    problem=process.problem,
                    stack=self.stack,
                )
                for process in self._processes
                if process.name
            ],
        )

    def _drain(self) -> int:
        log.info("action=draining Finishing the batch in hand; a second signal ends at once.")
        self._make_folders()
        with suppress(OSError):  # without it a chunk in hand may outlast the grace period, and is lost like any other
            self._drain_file.touch()
        for process in self._alive():
            process.terminate()
        until = time.monotonic() + LAUNCHER_SHARE * self.grace_s
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
    # `recovery` first, whatever the classes: what a dead process left is everybody's.
    options = (
        f"worker --pool prefork --concurrency 1 --queues {','.join(('recovery', *queues))} --hostname {slot.name}@%h"
    )
    quiet = "--without-gossip --without-mingle --without-heartbeat --loglevel INFO"
    return [sys.executable, "-m", "celery", "--app", "worker.app", "--quiet", *options.split(), *quiet.split()]


def environment(slot: Slot, queues: Sequence[str], drain_file: Path, outer: Mapping[str, str]) -> dict[str, str]:
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
        "GRADCAM_WORKER_PROCESSES_ON_DEVICE": str(slot.sharing),
        # Where prometheus_client's processes write; it has to be there before it is imported.
        "PROMETHEUS_MULTIPROC_DIR": str(drain_file.with_name(METRICS)),
        "GRADCAM_WORKER_DRAIN_FILE": str(drain_file),
        "GRADCAM_WORKER_QUEUES": ",".join(queues),
    }
