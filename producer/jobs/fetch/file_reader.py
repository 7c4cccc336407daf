"""Read files of this machine: one folder at a time is opened, without following links."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from pathlib import Path

from producer.jobs.fetch.addresses import FileAddress
from producer.jobs.fetch.network import PIECE_BYTES, refuse_larger
from producer.jobs.fetch.policy import FetchPolicy, checked_file
from producer.jobs.model.errors import FetchError


def file_pieces(address: FileAddress, limit_bytes: int, policy: FetchPolicy) -> Generator[bytes, None, None]:
    """Read a file that the policy allows. Raises FetchError."""
    path = checked_file(address.path, policy)
    try:
        with os.fdopen(open_without_links(path), "rb", buffering=0) as source:
            found = os.fstat(source.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise FetchError(f"{address.shown} is refused: it is not a regular file")
            refuse_larger(address.shown, found.st_size, limit_bytes)
            while piece := source.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise FetchError(f"{address.shown} cannot be read: {os.strerror(error.errno or 0)}") from error


def open_without_links(path: Path) -> int:
    """Open a resolved path one folder at a time, so that a folder swapped for a link since then is an error."""
    # O_PATH needs no right to list the folder; where there is none (macOS), O_RDONLY does.
    folder_flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
    folder = os.open("/", folder_flags)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, folder_flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        # O_NONBLOCK: a pipe put in the file's place must not hang us before we see what it is.
        return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
