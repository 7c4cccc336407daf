"""The launcher: it starts the planned worker processes, restarts those that die, and stops all of them cleanly."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Final

from producer.jobs.model.errors import WorkerError
from producer.jobs.model.spec import PRIORITIES
from worker.supervise import cores, run_dirs
from worker.supervise.backoff import Backoff
from worker.supervise.grace import LAUNCHER_SHARE
from worker.supervise.health import Health
from worker.supervise.process_list import ListedProcess, publish, published
from worker.supervise.process_plan import PlannedProcess
from worker.supervise.weights_folder import complaint, default_folder

log = logging.getLogger(__name__)

_NOT_TOLD = ("ignore:semaphore_tracker", "ignore:resource_tracker")
#: Its own name in the log.
NAME = "launcher"
_LOOK_EVERY_S: Final = 0.2
#: How often the launcher looks for its folder.
_KEEP_EVERY_S: Final = 1.0
#: How often it makes the folder look used: tidiers of temporary files wait for days.
_TOUCH_EVERY_S: Final = 600.0
#: The folder of the processes' metrics, in the launcher's.
METRICS: Final = "metrics"
#: A process that fails so often in a row before it is ready is given up: what it lacks does not come by itself.
GIVEN_UP_AFTER: Final = 5

#: Signals that ask us to stop; SIGHUP is a closed terminal.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Exit codes that somebody else caused; they do not tell whether the process could have worked.
_WANTED = frozenset({0, -signal.SIGKILL, *(-number for number in _STOPS)})


@dataclass
class _Process:
    planned: PlannedProcess
    #: The planned name, and a part of its own for each start.
    name: str = ""
    running: subprocess.Popen[bytes] | None = None
    #: In seconds since 1970.
    started_at: float = 0.0
    #: In seconds of the monotonic clock.
    started: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)
    #: When to start it again, in seconds of the monotonic clock.
    start_at: float = 0.0
    #: How often in a row it failed before it was ready.
    failures: int = 0
    given_up: bool = False
    #: Whether it has been ready; a tidier may remove the file that says so.
    ready: bool = False
    #: Why it does not run.
    problem: str | None = None
    #: Whether it was asked to finish and leave: it is not started again.
    leaves: bool = False


@dataclass
class Launcher:
    """Keeps the planned processes running until a signal asks it to stop."""

    planned: Sequence[PlannedProcess]
    grace_s: float
    #: The priorities that the processes read, in this order.
    queues: Sequence[str] = PRIORITIES
    run_dir: Path | None = None
    #: Address and port of the metrics; without a port there are none.
    metrics: tuple[str, int | None] = ("", None)
    #: The stack whose jobs the processes work off, as `stack_of` names it.
    stack: str = ""
    #: Where weights files are kept; a folder in the user's cache when empty.
    weights_dir: Path | None = None
    #: What the settings leave open.
    warnings: Sequence[str] = ()
    _own: run_dirs.Folder = field(init=False)
    _processes: list[_Process] = field(default_factory=list)
    _keep_at: float = 0.0
    _touch_at: float = 0.0
    #: Why there is no folder, as the log said last.
    _folder_problem: str = ""
    #: Why weights files cannot be kept, as it was told last.
    _weights_note: str = ""
    _signals: int = 0
    #: How many processes ended though nobody asked them to.
    _deaths: int = 0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT: the first drains, the second ends at once. Returns the exit code.

        Raises:
            WorkerError: No process can get ready.
        """
        with run_dirs.folder(self.run_dir) as self._own:
            self._processes = [_Process(planned) for planned in self.planned]
            self._serve_metrics()
            self._look_at_weights()
            for warning in self.warnings:
                log.warning("action=left_open %s.", warning)
            previous = {number: signal.signal(number, self._signalled) for number in _heard()}
            try:
                while not self._signals and not self._drain_file.exists():
                    self._keep_folder()
                    self._keep_running()
                    if not self._processes:
                        log.info("action=left Every process was asked to leave, and has; the launcher ends.")
                        return 0
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
            from worker.supervise.machine_metrics import GpuCollector, ProcessCollector

            self._make_folders()
            gpus = {process.place: process.visible for process in self.planned if process.place}
            others = (ProcessCollector(self._folder, lambda: self._deaths), GpuCollector(gpus))
            serve(self._folder / METRICS, address, port, others)

    def _keep_folder(self) -> None:
        """Restore, once a second, what a tidier of temporary files took away."""
        now = time.monotonic()
        if now < self._keep_at:
            return
        self._keep_at = now + _KEEP_EVERY_S
        self._make_folders()
        for process in self._processes:
            process.ready = process.ready or Health(self._folder / process.name).has("ready")
        if not published(self._folder):
            self._publish()
        if now >= self._touch_at:
            self._touch_at = now + _TOUCH_EVERY_S
            self._look_at_weights()
            self._publish()
            self._own.touch()

    def _look_at_weights(self) -> None:
        """Tell at the start, not with the first job, that weights will be fetched again and again."""
        note = complaint(self.weights_dir or default_folder())
        if note and note != self._weights_note:
            log.warning("action=weights_not_kept %s.", note)
        self._weights_note = note

    def _make_folders(self) -> None:
        """Make the folder in which processes say what they do; without it they work on."""
        problem = ""
        try:
            if self._own.keep():
                log.warning("action=folder_restored %s was taken away and is there again.", self._folder)
            (self._folder / METRICS).mkdir(exist_ok=True)
        except WorkerError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{self._folder} cannot be used ({error.strerror})"
        if problem and problem != self._folder_problem:
            log.error("action=no_folder The processes work on, but no check can see them: %s", problem)
        self._folder_problem = problem

    @property
    def _drain_file(self) -> Path:
        return self._folder / "drain"

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _keep_running(self) -> None:
        for process in list(self._processes):
            if process.running is None:
                if not process.given_up and time.monotonic() >= process.start_at:
                    self._start(process)
            elif (code := process.running.poll()) is not None:
                self._died(process, code)
            elif not process.leaves and Health(self._folder / process.name).has("drain"):
                process.leaves = True
                log.info("action=leaving %s was asked to finish and leave.", process.name)
                process.running.terminate()

    def _start(self, process: _Process) -> None:
        # A new name each time: the last words of the process before must not count as this one's.
        planned = replace(process.planned, name=f"{process.planned.name}-{secrets.token_hex(2)}")
        on = f" of cores {','.join(map(str, planned.cores))}" if planned.cores else ""
        log.info(
            "action=starting Starting %s on %s with %d threads%s.", planned.name, planned.device, planned.threads, on
        )
        self._make_folders()
        Health(self._folder / planned.name).forget()  # should its name come a second time
        process.name, process.problem, process.ready = planned.name, None, False
        process.started_at, process.started = time.time(), time.monotonic()
        try:
            with cores.pinned(planned.cores):
                # A session of its own: Ctrl-C on the terminal reaches the launcher alone, which drains the processes.
                process.running = subprocess.Popen(
                    command(planned, self.queues),
                    env=environment(planned, self.queues, self._drain_file, os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            # No memory, or no more processes may be: the others work on, and it may be better in a moment.
            delay_s = process.backoff.after(0)
            process.start_at = process.started + delay_s
            process.problem = f"it cannot be started now ({error.strerror}), and is tried again in a moment"
            log.error(  # noqa: TRY400 - a sentence says it all
                "action=not_started %s cannot be started (%s); trying again in %.0f s.",
                process.name,
                error.strerror,
                delay_s,
            )
        self._publish()

    def _died(self, process: _Process, code: int) -> None:
        lived_s = time.monotonic() - process.started
        if process.running is not None:
            # Nobody watches its child any more, and it would share the device with the next process.
            _kill_group(process.running.pid)
        health = Health(self._folder / process.name)
        why = health.standing_fault() or f"it ended with code {code} after {lived_s:.0f} s"
        was_ready = process.ready or health.has("ready")
        if was_ready:
            process.failures = 0
        elif code not in _WANTED:
            process.failures += 1
        process.leaves = process.leaves or health.has("drain")
        if not process.leaves:
            self._deaths += 1
        health.forget()
        if was_ready:
            # We have no connection to Redis; our other processes have, and the next one.
            health.gone()
        process.running = None
        if process.leaves:
            log.info("action=left %s has left, and is not started again.", process.name)
            self._processes.remove(process)
        elif process.failures >= GIVEN_UP_AFTER:
            self._give_up(process, why)
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
        self._publish()

    def _give_up(self, process: _Process, why: str) -> None:
        process.given_up = True
        process.problem = f"{process.planned.name} is given up, it failed {process.failures} times to get ready: {why}"
        log.error("action=given_up %s", process.problem)

    def _publish(self) -> None:
        """Write the list of processes for `gradcam-worker check`."""
        publish(
            self._folder,
            [
                ListedProcess(
                    name=process.name,
                    device=process.planned.device,
                    pid=process.running.pid if process.running else None,
                    started_at=process.started_at,
                    problem=process.problem,
                    stack=self.stack,
                    note=". ".join(filter(None, (self._weights_note, *self.warnings))),
                )
                for process in self._processes
                if process.name
            ],
        )

    def _drain(self) -> int:
        log.info("action=draining Finishing the current batches; a second signal ends at once.")
        self._make_folders()
        with suppress(OSError):  # without the file a chunk may outlast the grace period: its lease then runs out
            self._drain_file.touch()
        for process in self._alive():
            process.terminate()
        until = time.monotonic() + LAUNCHER_SHARE * self.grace_s
        while self._alive() and time.monotonic() < until and self._signals <= 1:
            time.sleep(_LOOK_EVERY_S)
        return 0

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [p.running for p in self._processes if p.running is not None and p.running.poll() is None]

    def _kill(self) -> None:
        for process in self._processes:
            if process.running is not None:
                # The whole session: else Celery's child would outlive its parent for a moment.
                _kill_group(process.running.pid)
                process.running.wait()


def _heard() -> list[signal.Signals]:
    """Return the signals that stop us: not those that our starter has us ignore, as `nohup` and a shell's `&` do."""
    return [one for one in _STOPS if one == signal.SIGTERM or signal.getsignal(one) is not signal.SIG_IGN]


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def command(planned: PlannedProcess, queues: Sequence[str]) -> list[str]:
    """Return the command line of a process's Celery worker; no secret is in it."""
    # `recovery` first, whatever the priorities: it holds what dead processes left.
    names = ",".join(("recovery", *queues))
    options = f"worker --pool prefork --concurrency 1 --queues {names} --hostname {planned.name}@%h"
    quiet = "--without-gossip --without-mingle --without-heartbeat --loglevel INFO"
    return [sys.executable, "-m", "celery", "--app", "worker.main", "--quiet", *options.split(), *quiet.split()]


def environment(
    planned: PlannedProcess, queues: Sequence[str], drain_file: Path, outer: Mapping[str, str]
) -> dict[str, str]:
    """Return a process's environment: device and threads are set before anything imports torch or OpenCV."""
    return {
        **outer,
        "CUDA_VISIBLE_DEVICES": planned.visible,
        "OMP_NUM_THREADS": str(planned.threads),
        "MKL_NUM_THREADS": str(planned.threads),
        # CPU threads sleep while they wait, and do not spin: threads that fetch and encode need the cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GRADCAM_WORKER_NAME": planned.name,
        "GRADCAM_WORKER_LAUNCHER_PID": str(os.getpid()),
        "GRADCAM_WORKER_DEVICE": planned.device,
        "GRADCAM_WORKER_PLACE": planned.place,
        "GRADCAM_WORKER_PROCESSES_ON_DEVICE": str(planned.sharing),
        # prometheus_client reads it when it is imported, and writes its files there.
        "PROMETHEUS_MULTIPROC_DIR": str(drain_file.with_name(METRICS)),
        "GRADCAM_WORKER_DRAIN_FILE": str(drain_file),
        "GRADCAM_WORKER_QUEUES": ",".join(queues),
        # Programs of Python's own warn there, in a format of their own, of what a killed process left, and remove it.
        "PYTHONWARNINGS": ",".join(filter(None, (outer.get("PYTHONWARNINGS"), *_NOT_TOLD))),
    }
