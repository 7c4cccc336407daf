"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from producer.jobs.model.errors import UsageError

_FOR_ALL, _FOR_ITS_OWNER = 0o666, 0o600
_NAME_CHARS = 100


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the `with` ends well; otherwise nothing stays behind.

    What is no file, such as /dev/stdout or a named pipe, is written to as it is.

    Args:
        path: Its name; what had it before stays until then.
        private: For nobody but its owner (mode 0600); else as the umask says.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        # A link goes on pointing to the file.
        with _replacing(path.resolve(), _FOR_ITS_OWNER if private else _FOR_ALL) as file:
            yield file
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror or error})") from None


@contextmanager
def _replacing(path: Path, mode: int) -> Iterator[BinaryIO]:
    partial = path.with_name(f".{path.name[:_NAME_CHARS]}.{secrets.token_hex(6)}")
    try:
        # os.open, for the system to apply the umask: mkstemp's files are for their owner alone.
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
