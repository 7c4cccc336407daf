"""Stacks of a test module's own, whose workers and servers it may kill, and this process's settings with them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import s3_servers

from deploy.stack import Stack, Worker

POISON = Path(__file__).with_name("poison")
#: For jobs whose pictures nobody looks at: a process that was just started has this network at once.
SMALL: Final[dict[str, Any]] = {"network": "squeezenet1_1", "weight_path": "random", "outputs": ["cam"]}
#: Lost work is looked for often, and dead holders are not waited for long.
QUICK = {
    "GRADCAM_WORKER_INTERVAL_S": "0.5",
    "GRADCAM_WORKER_LEASE_S": "2",
    "GRADCAM_WORKER_COMMIT_EVERY_S": "0.5",
}


@contextmanager
def settings_of(stack: Stack, **settings: str) -> Iterator[None]:
    """This process's environment points at a stack, for as long as the `with` lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GRADCAM_") and "_TEST_" not in name]:
            patch.delenv(name)
        for name, value in {**stack.env, **QUICK, **settings}.items():
            patch.setenv(name, value)
        yield


def set_only(patch: pytest.MonkeyPatch, settings: Mapping[str, str]) -> None:
    """This process has these settings of ours and of AWS, as another stack's client has them, and no others."""
    ours = ("GRADCAM_", "AWS_")
    for name in [name for name in os.environ if name.startswith(ours) and "_TEST_" not in name]:
        patch.delenv(name)
    for name, value in settings.items():
        if name.startswith(ours):
            patch.setenv(name, value)


@contextmanager
def own_stack(directory: Path, settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Servers, no worker, and this process's settings for them."""
    with s3_servers.make_stack(directory) as running, settings_of(running, **(settings or {})):
        yield running


def eventually(condition: Callable[[], object], within_s: float = 60.0, every_s: float = 0.05) -> float:
    """Wait until it is so; how many seconds it took."""
    started = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - started
        assert waited_s < within_s, f"it did not happen within {within_s:g} s"
        time.sleep(every_s)
    return time.monotonic() - started


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """A process stands still for as long as the `with` lasts."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def asleep(stack: Stack) -> Iterator[None]:
    """The worker's processes take nothing for as long as the `with` lasts, which must be shorter than their leases."""
    assert stack.worker is not None
    eventually(lambda: children_of(stack.worker))  # type: ignore[arg-type]
    with ExitStack() as stopped:
        for process in mains_of(stack.worker):
            stopped.enter_context(frozen(process))
        time.sleep(1.1)  # what they had asked for has come back empty
        yield


def children_of(worker: Worker) -> list[psutil.Process]:
    """The processes of a launcher that compute: the spawned children of its Celery workers."""
    return [process for process in _started_by(worker, recursive=True) if "spawn_main" in _command(process)]


def mains_of(worker: Worker) -> list[psutil.Process]:
    """The main processes of a launcher's Celery workers."""
    return [process for process in _started_by(worker, recursive=False) if "celery" in _command(process)]


def _started_by(worker: Worker, *, recursive: bool) -> list[psutil.Process]:
    try:
        return psutil.Process(worker.process.pid).children(recursive=recursive) if worker.process else []
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@contextmanager
def without_descriptors(process: psutil.Process, left: int) -> Iterator[None]:
    """Let a process open so few files more: it can read and write one, and make no pipe to a new process."""

    def now() -> set[int]:
        return {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}

    before = process.rlimit(psutil.RLIMIT_NOFILE)
    taken = set.intersection(*(now() for _ in range(5)))  # some are open for a moment only
    limit = next(number for number in range(1000) if number - len(taken & set(range(number))) == left)
    process.rlimit(psutil.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        if process.is_running():
            process.rlimit(psutil.RLIMIT_NOFILE, before)
