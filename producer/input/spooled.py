"""Where the bytes of a list lie: files here, and what must be read more than once but cannot be: pipes, downloads.

What is kept is kept in an unnamed temporary file: whatever dies, nothing of it stays on the disk.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model.errors import FetchError, ServiceError, UsageError, WorkerError
from producer.jobs.model.redaction import redact
from producer.jobs.model.text import shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from producer.jobs.store.bucket import Storage

#: The largest list that is downloaded, and the longest that may take.
MAX_LIST_BYTES = 8 * 2**30
_DOWNLOAD_S = 3600.0
#: The user names the address, on a machine of the user's: whatever it can reach may be read.
_EVERYWHERE = ("0.0.0.0/0:*", "[::/0]:*")
_BUFFER_BYTES = 2**18


class RereadableFile(Protocol):
    """Bytes that can be read again and again, and are the same each time."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def open(self) -> BinaryIO:
        """Open it at its beginning. Raises UsageError when it cannot be read, or has changed."""

    def close(self) -> None:
        """Give back what was kept on the disk."""


class TempFile:
    """An unnamed temporary file; it is gone when nobody can read it any more."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="gradcam-") as file:
            self._fd = os.dup(file.fileno())
        self._closed = weakref.finalize(self, os.close, self._fd)

    def writer(self) -> BinaryIO:
        """Open it for writing; readers see what was flushed."""
        return os.fdopen(self._fd, "r+b", closefd=False)

    def append(self, content: bytes) -> None:
        """Write it behind all that is there."""
        os.pwrite(self._fd, content, self.size_bytes())

    def open(self) -> BinaryIO:
        """Open it at its beginning; readers do not disturb each other."""
        return cast("BinaryIO", io.BufferedReader(_Positioned(self), _BUFFER_BYTES))

    def read_at(self, position: int, count: int) -> bytes:
        """Read up to so many bytes from a position on."""
        return os.pread(self._fd, count, position)

    def size_bytes(self) -> int:
        """How much it holds."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Let go of it."""
        self._closed()


class _Positioned(io.RawIOBase):
    """A reader with a position of its own; the file lives at least as long."""

    def __init__(self, spool: TempFile) -> None:
        self._spool, self._position = spool, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        read = self._spool.read_at(self._position, len(view))
        view[: len(read)] = read
        self._position += len(read)
        return len(read)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._spool.size_bytes()}[whence]
        self._position = start + offset
        return self._position


class LocalFile:
    """A file of this machine, which must not change while it is read."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, shown(path)
        self._seen: tuple[int, ...] | None = None

    def open(self) -> BinaryIO:
        """Open it. Raises UsageError when it cannot be read, or is not what it was the first time."""
        try:
            file = open(self.path, "rb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read: {os.strerror(error.errno or 0)}") from None
        found = os.fstat(file.fileno())
        seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._seen not in {None, seen}:
            file.close()
            raise UsageError(f"{self.name} has changed since it was checked: submit it again when it is complete")
        self._seen = seen
        return file

    def close(self) -> None:
        """Nothing was kept."""


class SpooledFile:
    """Bytes that come only once, or slowly: they are copied to a temporary file at the first read.

    Args:
        name: What they are called in messages.
        fill: Writes all of them to a file.
    """

    def __init__(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        self.name = name
        self._fill = fill
        self._spool: TempFile | None = None
        self._closed = False

    def open(self) -> BinaryIO:
        """Open them. Errors are those of what fills it; UsageError when there is no room."""
        if self._closed:
            raise ValueError(f"{self.name} is closed")
        if self._spool is None:
            with explain_full_disk(self.name):
                spool = TempFile()
                with spool.writer() as file:
                    self._fill(file)
            self._spool = spool
        return self._spool.open()

    def close(self) -> None:
        """Let go of them, for good."""
        self._closed = True
        if self._spool is not None:
            self._spool.close()
            self._spool = None


@contextmanager
def explain_full_disk(name: str) -> Iterator[None]:
    """Turn a full disk into a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{name} cannot be kept in {tempfile.gettempdir()} while it is read ({os.strerror(error.errno or 0)}): "
            "name a folder with more room in TMPDIR"
        ) from None


def from_pipe(name: str, pipe: BinaryIO) -> SpooledFile:
    """Keep what comes out of a pipe, such as standard input."""
    return SpooledFile(name, lambda file: shutil.copyfileobj(pipe, file, _BUFFER_BYTES))


def from_address(address: str, storage: Callable[[], Storage] | None) -> SpooledFile:
    """Keep a list that lies in an object store or on a web server."""
    shown = redact(address)

    def fill(file: BinaryIO) -> None:
        from producer.jobs.fetch.fetcher import Fetcher

        s3 = storage().client if storage is not None and address.lower().startswith("s3://") else None
        policy = FetchPolicy(allow_hosts=_EVERYWHERE, max_bytes=MAX_LIST_BYTES, total_timeout_s=_DOWNLOAD_S)
        fetcher = Fetcher(policy, s3)
        try:
            fetcher.fetch_to(address, file)
        except FetchError as error:
            # Who may know where a name leads is who typed it.
            raise UsageError(f"the list cannot be read: {error.why or error}") from None
        except WorkerError as error:
            raise ServiceError(
                f"the list {shown} cannot be read ({error.__cause__ or error}): correct AWS_* or the network"
            ) from None
        finally:
            fetcher.close()

    return SpooledFile(shown, fill)
