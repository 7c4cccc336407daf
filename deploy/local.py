"""The embedded stack as commands: `python -m deploy.local up | down`, which `make up` and `make down` call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import redis

from deploy.directory_lock import holder, make_private
from deploy.stack import WORKER_GRACE_S, Stack
from deploy.supervisor import supervise as hold_stack
from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, ServiceError, UsageError
from producer.jobs.model.terminal import out, out_lines, say, say_error, say_refused

__all__ = ["Stack", "main"]

#: A little more than the servers' own limits, whose errors say more.
_UP_WITHIN_S = 90.0
_WORKERS_WITHIN_S = 30.0
_DOWN_WITHIN_S = WORKER_GRACE_S + 30.0

_directory = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".gradcam"),
    show_default=True,
    help="Where the stack's data, settings and logs are.",
)


@click.group()
def cli() -> None:
    """Run Valkey, SeaweedFS and workers on this machine, without Docker or root."""


@cli.command()
@_directory
@click.option(
    "--workers", type=click.IntRange(0, 1000), default=1, show_default=True, help="Celery workers; 0 for none."
)
def up(directory: Path, workers: int) -> None:
    """Start the stack in the background; jobs and pictures of earlier times are still there."""
    if holder(directory) is not None:
        return _say_that_it_is_up(_state(directory), workers)
    make_private(directory)
    log = directory / "supervisor.log"
    command = [sys.executable, "-m", "deploy.local", "supervise"]
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [*command, "--directory", str(directory.absolute()), "--workers", str(workers)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(directory, supervisor)
    except BaseException:
        # Ctrl-C here cancels the start.
        supervisor.terminate()
        supervisor.wait()
        raise
    _wait_for_workers(directory, workers)
    supervisor.returncode = 0  # it lives on, and Python must not warn about that
    env = directory / "env"
    out_lines(
        f"The stack is up with {_count(workers)}; its logs are in {directory}/. What to type next:\n\n"
        f"  source {env}\n"
        "  gradcam submit my-photos/ --network efficientnet_lite0\n"
        "  gradcam status JOB\n\n"
        "`make down` stops it; jobs and pictures stay."
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
    """Wait for the first heartbeat; a worker that sends none says why in its log, and is started again."""
    deadline = time.monotonic() + _WORKERS_WITHIN_S
    with closing(redis.Redis.from_url(Stack(directory).redis.url)) as client:
        while client.zcount(keys.WORKERS, time.time() - _WORKERS_WITHIN_S, "+inf") < workers:
            if time.monotonic() > deadline:
                say(f"the workers have not reported yet; their log is {directory}/worker.log")
                return
            time.sleep(0.1)


def _say_that_it_is_up(state: dict[str, Any], workers: int) -> None:
    if not state:
        raise UsageError("the stack is being started or stopped at this moment; try again in some seconds")
    if state["workers"] != workers:
        raise UsageError(
            f"the stack is up already, with {_count(state['workers'])}; `make down` first to run it with {workers}"
        )
    out(f"The stack is up already, with {_count(workers)}.")


@cli.command()
@_directory
def down(directory: Path) -> None:
    """Stop the stack: workers finish their current batches, then everything ends."""
    supervisor = holder(directory)
    if supervisor is None:
        out("The stack is not up; nothing to stop.")
        return
    say("Stopping the stack …")
    deadline = time.monotonic() + _DOWN_WITHIN_S
    if supervisor:
        os.kill(supervisor, signal.SIGTERM)
    while holder(directory) == supervisor:
        if time.monotonic() > deadline:
            raise ServiceError(f"the stack has not ended after {_DOWN_WITHIN_S:g} s; its logs are in {directory}/")
        time.sleep(0.1)
    out("The stack is down; jobs and pictures are kept for the next `make up`.")


@cli.command(hidden=True)
@_directory
@click.option("--workers", type=click.IntRange(0, 1000), default=1)
def supervise(directory: Path, workers: int) -> None:
    """Hold the stack in the foreground."""
    hold_stack(directory, workers)


def _state(directory: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    except FileNotFoundError:
        return {}
    # A killed supervisor leaves its file behind.
    return state if state["pid"] == holder(directory) else {}


def _count(workers: int) -> str:
    return f"{workers or 'no'} worker{'' if workers == 1 else 's'}"


def main() -> None:
    """Run a command; exit 0, or 2 for what was typed, 3 for a server, 130 for Ctrl-C, with one sentence on stderr."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        say_refused(error)
        raise SystemExit(error.exit_code) from error
    except click.Abort:
        raise SystemExit(130) from None
    except GradcamError as error:
        say_error(error, "error")
        raise SystemExit(2 if isinstance(error, UsageError) else 3) from error


if __name__ == "__main__":
    main()
