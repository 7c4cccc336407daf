"""The folder that a job's pictures are downloaded to: no link in it is followed, no file of others is written over.

A file in it, `.gradcam-<job>`, has a line for each file that a download of that job wrote: its name. All else in the
folder is somebody else's.
"""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_left
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Self

from producer.jobs.model.errors import UsageError
from producer.output.atomic_file import not_written, replacing

_FOR_ALL = 0o666


class NotOurs(UsageError):
    """What is there under a picture's name is not what a download of that job wrote."""


class DownloadFolder:
    """An open folder; all that is in it is reached through it, whatever becomes of its path meanwhile.

    Safe to share between threads, but for `close`.

    Args:
        path: Made where it is not there; a link that somebody else made is refused.
        job: Whose pictures are written.

    Raises:
        UsageError, ServiceError: It cannot be written to, or the disk is full.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path, self._job = path, job
        self._descriptors: list[int] = []
        check_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._folder = self._keep(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            raise not_written(f"to {path}", error, ": choose another --output-dir") from None

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def file(self, name: str) -> os.stat_result | None:
        """What is known of a file; None where there is none of that name, or something else than a file."""
        found = self._look(name)
        return found if found is not None and stat.S_ISREG(found.st_mode) else None

    def write(self, name: str, content: bytes) -> None:
        """Write a file: it is there whole or not at all.

        Raises:
            NotOurs: Something is there that no download of the job wrote; it stays.
            UsageError, ServiceError: It cannot be written, or the disk is full.
        """
        try:
            before = self._look(name)
            if before is not None:
                self._check(name, before.st_mode)
            # First, so that what is there under the name is known to be ours.
            os.write(self._record, name.encode() + b"\n")
            with replacing(name, _FOR_ALL, folder=self._folder) as file:
                file.write(content)
        except OSError as error:
            raise not_written(self.path / name, error) from None

    def _check(self, name: str, mode: int) -> None:
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no file"
            raise NotOurs(f"{name} is {kind}: remove it, or choose another --output-dir")
        if not self._wrote(name):
            raise NotOurs(
                f"{name} is there, and no download of job {self._job} wrote it: move it away, or choose another "
                "--output-dir"
            )

    def _look(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _wrote(self, name: str) -> bool:
        digest = _digest(name.encode())
        place = bisect_left(self._written, digest)
        return place < len(self._written) and self._written[place] == digest

    @cached_property
    def _written(self) -> array[int]:
        """What downloads wrote, 8 bytes a file; read when something is in the way, which is seldom."""
        # Opened once more: the other descriptor's place in the file moves with each line that is added.
        with os.fdopen(self._open_record(os.O_RDONLY), "rb") as file:
            return array("Q", sorted(_digest(line.removesuffix(b"\n")) for line in file))

    @cached_property
    def _record(self) -> int:
        return self._keep(self._open_record(os.O_WRONLY | os.O_APPEND))

    def _open_record(self, how: int) -> int:
        name = f".gradcam-{self._job}"
        found = self._look(name)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{self.path / name} is no file of ours: remove it, or choose another --output-dir")
        return os.open(name, how | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, _FOR_ALL, dir_fd=self._folder)

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor


def _digest(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest())


def check_folder(path: Path) -> None:
    """Make sure that a folder is there and can be written to, or can be made. Raises UsageError."""
    why = _why_not(path)
    if why is not None:
        raise UsageError(f"cannot write to {str(path)[:200]} ({why}): choose another --output-dir")


def _why_not(path: Path) -> str | None:
    # In a folder that others may write to, as /tmp, somebody may have put a link there to lead the pictures elsewhere.
    for folder in (path, *path.absolute().parents):
        with suppress(OSError, ValueError):
            found = folder.lstat()
            if stat.S_ISLNK(found.st_mode) and found.st_uid not in {0, os.geteuid()}:
                return f"{folder} is a link that another user made"
    for folder in (path, *path.absolute().parents):
        try:
            mode = folder.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if folder.is_symlink():
                return f"{folder} is a link to nothing"
            continue  # What lies above it says whether it can be made.
        except (OSError, ValueError) as error:
            return str(error.strerror if isinstance(error, OSError) else error)
        if not stat.S_ISDIR(mode):
            return f"{folder} is a file, not a folder"
        return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not yours to write to"
    return None
