"""The embedded stack in the background: what `gradcam up` and `gradcam down` do."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import redis

from deploy import DEFAULT_DIRECTORY
from deploy.directory_lock import OF_LAUNCHER, holder, make_private
from deploy.stack import WORKER_GRACE_S, Stack
from producer.jobs.model import keys
from producer.jobs.model.errors import ServiceError, UsageError
from producer.jobs.model.terminal import out, out_lines, say
from producer.jobs.model.text import counted, quoted

#: A little more than the servers' own limits, whose errors say more.
_UP_WITHIN_S = 90.0
_WORKERS_WITHIN_S = 30.0
_DOWN_WITHIN_S = WORKER_GRACE_S + 30.0
#: What a launcher gets that has nobody to give its chunks back to.
_LEFT_OVER_S = 5.0


def start(directory: Path, workers: int) -> None:
    """Start the stack in the background; jobs and pictures of earlier times are still there.

    Args:
        directory: Where its data, settings and logs are.
        workers: Celery workers; 0 for none.

    Raises:
        UsageError: It is up already with other workers, or is being started or stopped; or its workers cannot start
            with their settings: then it is down again.
        ServiceError: It does not come up.
    """
    if holder(directory) is not None:
        return _say_that_it_is_up(directory, _state(directory), workers)
    make_private(directory)
    _end_left_over(directory)
    log = directory / "supervisor.log"
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "deploy.supervisor", str(directory.absolute()), str(workers)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(directory, supervisor)
        _wait_for_workers(directory, workers)
    except BaseException:
        # Ctrl-C here cancels the start.
        supervisor.terminate()
        supervisor.wait()
        raise
    supervisor.returncode = 0  # it lives on, and Python must not warn about that
    out_lines(
        f"The stack is up with {_count(workers)}; its logs are in {directory}/. What to type next:\n\n"
        f"  source {shlex.quote(str(directory / 'env'))}\n"
        "  gradcam submit my-photos/ --network efficientnet_lite0\n"
        "  gradcam status JOB\n\n"
        f"`{_typed('down', directory)}` stops it; jobs and pictures stay."
    )


def _wait_until_up(directory: Path, supervisor: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _UP_WITHIN_S
    while _state(directory).get("pid") != supervisor.pid:
        if supervisor.poll() is not None:
            said = (directory / "supervisor.log").read_text(errors="replace").strip()
            raise ServiceError("the stack did not come up:", excerpt=said)
        if time.monotonic() > deadline:
            raise ServiceError(f"the stack is not up after {_UP_WITHIN_S:g} s; its logs are in {directory}/")
        time.sleep(0.1)


def _wait_for_workers(directory: Path, workers: int) -> None:
    """Wait for the first heartbeat; a worker that sends none says why in its log, and is started again.

    Raises:
        UsageError: It cannot start with its settings, and is not started again.
    """
    deadline = time.monotonic() + _WORKERS_WITHIN_S
    with closing(redis.Redis.from_url(Stack(directory).redis.url)) as client:
        while client.zcount(keys.WORKERS, time.time() - _WORKERS_WITHIN_S, "+inf") < workers:
            if refusal := _state(directory).get("refusal"):
                raise UsageError(f"the workers cannot start: {refusal}")
            if time.monotonic() > deadline:
                say(f"the workers have not reported yet; their log is {directory}/worker.log")
                return
            time.sleep(0.1)


def _say_that_it_is_up(directory: Path, state: dict[str, Any], workers: int) -> None:
    down, up = (_typed(verb, directory) for verb in ("down", "up"))
    if not state:
        raise UsageError("the stack is being started or stopped at this moment; try again in some seconds")
    if state["workers"] != workers:
        raise UsageError(
            f"the stack is up already, with {_count(state['workers'])}; `{down}` first to run it with {workers}"
        )
    if state.get("refusal"):
        raise UsageError(f"the stack is up already, but its workers cannot start: {state['refusal']}; `{down}` first")
    if state.get("left"):
        out(
            f"The stack is up already; its workers were asked to leave, and have: `{down}`, then `{up}` starts them "
            "again."
        )
        return
    out(f"The stack is up already, with {_count(workers)}.")


def stop(directory: Path) -> None:
    """Stop the stack: workers finish their current batches, then everything ends.

    Raises:
        ServiceError: It does not end.
    """
    supervisor = holder(directory)
    if supervisor is None:
        if _end_left_over(directory):
            out(f"The stack in {directory} was killed, and what it left has ended; jobs and pictures are kept.")
            return
        out(f"The stack in {quoted(directory.absolute())} is not up; nothing to stop.")
        for other in _others():
            say(f"Another one is up: {_typed('down', other)}")
        return
    say("Stopping the stack …")
    deadline = time.monotonic() + _DOWN_WITHIN_S
    if supervisor:
        with suppress(ProcessLookupError):  # another `down` was faster
            os.kill(supervisor, signal.SIGTERM)
    try:
        while holder(directory) == supervisor:
            if time.monotonic() > deadline:
                raise ServiceError(f"the stack has not ended after {_DOWN_WITHIN_S:g} s; its logs are in {directory}/")
            time.sleep(0.1)
    except KeyboardInterrupt:
        say(f"The stack ends by itself all the same; whether it has: {_typed('down', directory)}")
        raise
    out(f"The stack is down; jobs and pictures are kept for the next `{_typed('up', directory)}`.")


def _end_left_over(directory: Path) -> bool:
    """End the launcher that a killed supervisor left, with its workers; whether there was one.

    The kernel has asked it to drain already, where it is Linux. Its servers are gone: a second signal ends it at once.
    """
    launcher = holder(directory, OF_LAUNCHER)
    if launcher is None:
        return False
    say("Ending the workers of a stack that was killed …")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            if launcher:
                os.kill(launcher, number)
        deadline = time.monotonic() + _LEFT_OVER_S
        while time.monotonic() < deadline:
            if holder(directory, OF_LAUNCHER) is None:
                return True
            time.sleep(0.1)
    raise ServiceError(f"process {launcher} of a killed stack does not end; its log is {directory}/worker.log")


def _others() -> Iterator[Path]:
    """The directories of this user's stacks that are up, where the system lists its processes as Linux does."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            if process.stat().st_uid == os.getuid():
                words = (process / "cmdline").read_bytes().decode().split("\0")
                yield Path(words[words.index("deploy.supervisor") + 1])


def _state(directory: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    except FileNotFoundError:
        return {}
    # A killed supervisor leaves its file behind.
    return state if state["pid"] == holder(directory) else {}


def _typed(verb: str, directory: Path) -> str:
    """Return what to type for a stack in this directory."""
    return f"gradcam {verb}" + ("" if directory == DEFAULT_DIRECTORY else f" --directory {shlex.quote(str(directory))}")


def _count(workers: int) -> str:
    return counted(workers, "worker") if workers else "no workers"
