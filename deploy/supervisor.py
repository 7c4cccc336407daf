"""The process behind `gradcam up`: it holds the stack, restarts what dies, and ends everything on request."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from deploy.directory_lock import write_private
from deploy.servers import Server
from deploy.stack import FOREIGN, Stack, Worker
from producer.jobs.model import interrupt, terminal
from producer.jobs.model.errors import GradcamError
from producer.jobs.model.text import counted
from worker.supervise.backoff import Backoff

_LOOK_EVERY_S = 0.5


@dataclass
class Restarted:
    """One program that is started again when it dies, after longer delays while it keeps dying.

    A worker that was asked to leave has not died: it stays ended. So does one that cannot start with its settings.
    """

    program: Server | Worker
    backoff: Backoff = field(default_factory=Backoff)
    started_at: float = field(default_factory=time.monotonic)
    #: When the dead program is started again; None while it runs.
    start_at: float | None = None

    @property
    def left(self) -> bool:
        """Return whether the program is a worker that was asked to leave, and has."""
        return isinstance(self.program, Worker) and self.program.left

    @property
    def refusal(self) -> str:
        """Return why the program is a worker that cannot start with its settings; empty where it is none."""
        return self.program.refusal if isinstance(self.program, Worker) else ""

    def look(self) -> None:
        """Start the program again if it has died and its delay is over."""
        if self.program.alive or self.left or self.refusal:
            return
        now = time.monotonic()
        if self.start_at is None:
            delay_s = self.backoff.after(now - self.started_at)
            self.start_at = now + delay_s
            say(f"{self.program.name} has died and is started again in {delay_s:g} s")
        if now < self.start_at:
            return
        self.start_at = None
        try:
            self.program.restart()
        except GradcamError as error:
            say(str(error), error.excerpt)
        except OSError as error:  # of a library that wanted a file or a socket: the others go on
            say(f"{self.program.name} cannot be started now ({error.strerror or error})")
        self.started_at = time.monotonic()


def supervise(directory: Path, workers: int) -> None:
    """Hold a stack until it is interrupted; `env` and `state.json` in its directory say where it is, while it is up."""
    env, state = directory / "env", directory / "state.json"
    try:
        with Stack(directory, workers) as stack:
            try:
                write_private(env, env_file(stack.env))
                _write_state(state, workers)
                say(f"up with {counted(workers, 'worker')}")
                _keep_running(stack, partial(_write_state, state, workers))
            finally:
                state.unlink(missing_ok=True)
                env.unlink(missing_ok=True)
    except KeyboardInterrupt:
        interrupt.heard()
        say("down")


def _write_state(state: Path, workers: int, *, left: bool = False, refusal: str = "") -> None:
    write_private(state, json.dumps({"pid": os.getpid(), "workers": workers, "left": left, "refusal": refusal}))


def _keep_running(stack: Stack, write_state: Callable[..., None]) -> None:
    programs = [stack.redis, stack.s3, stack.worker]
    restarted = [Restarted(program) for program in programs if program is not None]
    while True:
        for each in restarted:
            each.look()
        for each in [each for each in restarted if each.left]:
            restarted.remove(each)
            say(
                f"{each.program.name} was asked to leave, and has; it stays ended until `gradcam down` and `gradcam up`"
            )
            _note(write_state, left=True)
        for each in [each for each in restarted if each.refusal]:
            restarted.remove(each)
            say(f"{each.program.name} cannot start, and stays ended: {each.refusal}")
            _note(write_state, refusal=each.refusal)
        time.sleep(_LOOK_EVERY_S)


def _note(write_state: Callable[..., None], **facts: Any) -> None:
    """Write what `up` tells of the workers; a full disk is no reason to end the servers."""
    try:
        write_state(**facts)
    except GradcamError as error:
        say(str(error))


def env_file(settings: dict[str, str]) -> str:
    """Return the settings as a file for `source`, with the command `gradcam` on its PATH, wherever it is installed."""
    exports = "".join(f"export {name}={_quoted(value)}\n" for name, value in settings.items())
    return (
        "# What `gradcam` needs to find the local stack: source this file.\n"
        f"unset {' '.join(FOREIGN)}\n{exports}"
        f'export PATH={_quoted(str(Path(sys.executable).parent))}:"$PATH"\n'
    )


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def say(text: str, excerpt: str = "") -> None:
    """Write a line with its time to the supervisor's log, and lines behind it; a full disk ends nothing."""
    with suppress(OSError):
        terminal.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
        if excerpt:
            terminal.say_lines(excerpt)


def _command() -> int:
    try:
        supervise(Path(sys.argv[1]), int(sys.argv[2]))
    except GradcamError as error:
        raise SystemExit(f"error: {error}") from error
    return 0


if __name__ == "__main__":
    # `python -m deploy.supervisor DIRECTORY WORKERS`, as `deploy.local` starts it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever started us may ignore it, and `down` sends it
    # A signal interrupts any wait, as Ctrl-C does, and the `with` ends everything; another `down` adds nothing.
    interrupt.run_guarded(_command, insists=False)
