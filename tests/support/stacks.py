"""Stacks of a test module's own, whose workers and servers it may kill, and this process's settings with them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import s3_servers

from deploy.stack import Stack

POISON = Path(__file__).with_name("poison")
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


def children(stack: Stack) -> list[psutil.Process]:
    """The processes that compute: the spawned children of the Celery workers."""
    if stack.worker is None or stack.worker.process is None:
        return []
    found = psutil.Process(stack.worker.process.pid).children(recursive=True)
    return [process for process in found if "spawn_main" in _command(process)]


def mains(stack: Stack) -> list[psutil.Process]:
    """The Celery workers' main processes."""
    if stack.worker is None or stack.worker.process is None:
        return []
    found = psutil.Process(stack.worker.process.pid).children()
    return [process for process in found if "celery" in _command(process)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
