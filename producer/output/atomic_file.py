"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from producer.jobs.model.errors import ServiceError, UsageError

_FOR_ALL, _FOR_ITS_OWNER = 0o666, 0o600
_NAME_CHARS = 100
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the `with` ends well; otherwise nothing stays behind.

    What is no file, such as /dev/stdout or a named pipe, is written to as it is.

    Args:
        path: Its name; what had it before stays until then.
        private: For nobody but its owner (mode 0600); else as the umask says.

    Raises:
        UsageError, ServiceError: It cannot be written, or the disk is full.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        # A link goes on pointing to the file.
        with replacing(str(path.resolve()), _FOR_ITS_OWNER if private else _FOR_ALL) as file:
            yield file
    except OSError as error:
        raise not_written(path, error) from None


def not_written(what: object, error: OSError, hint: str = "") -> UsageError | ServiceError:
    """Make the error of what cannot be written: another place helps, or room where it is.

    Args:
        what: The file, or what stands for it.
        error: What the system says.
        hint: What to do where it is the place.
    """
    if error.errno in _FULL:
        return ServiceError(
            f"cannot write {what} ({error.strerror}): the disk is full or broken; make room, then the same command "
            "goes on"
        )
    return UsageError(f"cannot write {what} ({error.strerror or error}){hint}")


@contextmanager
def replacing(path: str, mode: int, *, folder: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that takes the place of what is there when the `with` ends well; a link there is not followed.

    Args:
        path: Its path.
        mode: Its rights, less what the umask takes.
        folder: An open folder that the path begins at; otherwise as always.

    Raises:
        OSError: It cannot be written.
    """
    above, name = os.path.split(path)
    partial = os.path.join(above, f".{name[:_NAME_CHARS]}.{secrets.token_hex(6)}")
    try:
        # os.open, for the system to apply the umask: mkstemp's files are for their owner alone.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(partial, path, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        raise
