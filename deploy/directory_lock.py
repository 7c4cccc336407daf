"""The directory of a stack's data and secrets: only its owner can read it, and one process at a time holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from producer.jobs.model.errors import UsageError
from producer.output.atomic_file import atomic_file


def make_private(directory: Path) -> Path:
    """Make a directory that only its owner can enter; returns it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    return directory


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; a reader sees the old text or the new one, never a part of it."""
    with atomic_file(path, private=True) as file:
        file.write(text.encode())


class InUse(UsageError):
    """Another process holds the directory."""


class DirectoryLock:
    """The lock of a directory; the kernel ends it with the process, so no stale file can lie."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """Hold the directory.

        Raises:
            InUse: Another process holds it.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise InUse(f"a stack already runs in {self.path.parent}") from None
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        self._file = file

    def release(self) -> None:
        """Release the directory."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def holder(directory: Path) -> int | None:
    """Return the process that holds a directory, or None; 0 before that process has written its number."""
    try:
        file = os.open(directory / "lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(file, 32) or b"0")
    finally:
        os.close(file)
    return None
