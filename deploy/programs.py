"""A program of the stack, which has a log and ends with us; and free ports for servers."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from deploy.directory_lock import DirectoryLock, InUse
from producer.jobs.model.errors import ServiceError

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_LOG_TAIL_BYTES = 3000
#: Below the ports that systems give to clients. A client that keeps calling our dead server must not get the server's
#: own port: the server could not come back.
_PORTS = range(10_000, 30_000)
#: Linux ends such a program with the *thread* that started it: this thread lives as long as the process.
_STARTER = ThreadPoolExecutor(1, "deploy-starter")


class Program:
    """A program that runs beside us, and never longer."""

    #: The signal that the program gets when we are killed.
    death_signal = signal.SIGKILL

    def __init__(self, name: str, log: Path, lock: DirectoryLock | None = None) -> None:
        self.name = name
        self.log = log
        #: What the program holds while it runs.
        self._lock = lock
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Return whether the program runs."""
        return self.process is not None and self.process.poll() is None

    def launch(self, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        """Start the program in its own session: Ctrl-C in a terminal is for us, and we end the program in order.

        Files and sockets that it makes are for their owner alone.

        Raises:
            ServiceError: It cannot be started now: no memory, no more processes or files.
        """
        die_with_parent = (
            sys.executable,
            "-I",
            "-S",
            str(_DIE_WITH_PARENT),
            str(os.getpid()),
            str(int(self.death_signal)),
        )

        def start(*held: int) -> subprocess.Popen[bytes]:
            with self.log.open("ab") as log:
                return subprocess.Popen(
                    [*die_with_parent, *command],
                    cwd=directory,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=0o077,
                    pass_fds=held,
                )

        lock = self._lock
        starting = _STARTER.submit(start if lock is None else lambda: lock.hand_over(start))
        try:
            self.process = starting.result()
        except OSError as error:
            raise ServiceError(f"{self.name} cannot be started now ({error.strerror or error})") from None
        except KeyboardInterrupt:
            # It starts all the same, and whoever tidies up has to know of it.
            with suppress(OSError, InUse):
                self.process = starting.result()
            raise

    def kill(self) -> None:
        """End the program at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the program to end, and kill it after `grace_s`, with whatever it left behind."""
        if self.process is None:
            return
        process, self.process = self.process, None
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log_tail(self) -> str:
        """Return the end of the program's log."""
        with suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
            if lines:
                return "\n".join(f"  {line}" for line in lines[-12:])
            return "  (nothing; see that its disk has room)"  # of a full one it cannot say that it is full
        return "  (no log)"


def free_ports(count: int) -> list[int]:
    """Return different loopback ports on which nobody listens now."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(_PORTS)  # noqa: S311 - a port is no secret
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
        return ports
