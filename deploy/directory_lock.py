"""The directory of a stack's data and secrets: only its owner can read it, and one process at a time holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from producer.jobs.model.errors import UsageError
from producer.output.atomic_file import atomic_file
from worker.supervise import private_folder


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
    """The lock of a directory; the kernel ends it with the process, so no stale file can lie."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """Hold the directory.

        Raises:
            InUse: Another process holds it.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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
    """Return the process that holds a directory, or None; 0 before that process has written its number.

    Raises:
        UsageError: Another user wrote that number.
    """
    try:
        private_folder.refuse_others(directory)
        file = os.open(directory / "lock", os.O_RDWR | os.O_NOFOLLOW)
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
