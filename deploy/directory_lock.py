"""The directory of a stack's data and secrets: only its owner can read it, and one process at a time holds it.

The stack's launcher holds a lock of its own there: it may outlive a supervisor that was killed.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from producer.jobs.model.errors import UsageError
from producer.output.atomic_file import atomic_file
from worker.supervise import private_folder

#: The locks of a stack's directory: its owner's, and its launcher's.
OF_STACK, OF_LAUNCHER = "lock", "launcher.lock"
#: `holder` looks by holding a lock itself, for a moment: within this time that is not taken for a stack.
_LOOKED_AT_S = 0.5


def make_private(directory: Path) -> Path:
    """Make a directory that only its owner can enter; returns it.

    Raises:
        UsageError: It cannot be made, or is another user's.
    """
    try:
        return private_folder.make_private(directory)
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be used ({error.strerror or error}): name a directory of your own"
        ) from None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; a reader sees the old text or the new one, never a part of it."""
    with atomic_file(path, private=True) as file:
        file.write(text.encode())


class InUse(UsageError):
    """Another process holds the directory."""


class DirectoryLock:
    """A lock of a directory; the kernel ends it with the process, so no stale file can lie.

    Args:
        directory: Whose lock it is.
        name: Which of its locks.
    """

    def __init__(self, directory: Path, name: str = OF_STACK) -> None:
        self.path = directory / name
        self._file: int | None = None

    def acquire(self) -> None:
        """Hold the directory.

        Raises:
            InUse: Another process holds it.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        until = time.monotonic() + _LOOKED_AT_S
        while not _locked(file):
            if time.monotonic() > until:
                os.close(file)
                raise InUse(f"a stack already runs in {self.path.parent}")
            time.sleep(0.01)
        self._file = file
        self._name(os.getpid())

    def hand_over(self, start: Callable[[int], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Hold the directory by a program that is started: it has the lock until it ends.

        Args:
            start: Starts it; is given the open file that the program has to inherit.

        Raises:
            InUse: Another process holds it.
        """
        self.acquire()
        try:
            assert self._file is not None  # noqa: S101 - it is held
            process = start(self._file)
            self._name(process.pid)
        finally:
            self.release()
        return process

    def _name(self, pid: int) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(pid).encode(), 0)

    def release(self) -> None:
        """Release the directory."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(directory: Path, name: str = OF_STACK) -> int | None:
    """Return the process that holds a lock of a directory, or None; 0 before that process has written its number.

    Raises:
        UsageError: Another user wrote that number.
    """
    try:
        private_folder.refuse_others(directory)
        file = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be used ({error.strerror or error}): name a directory of your own"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(file, 32) or b"0")
    finally:
        os.close(file)
    return None
