"""Weights files on this machine's disk, by their content: one fetch for all processes that ask.

| name in the folder | what it is                                                                             |
|--------------------|----------------------------------------------------------------------------------------|
| `<64 hex digits>`  | a weights file, named by its SHA-256; when it was used last is its time of modification |
| `<4 hex digits>.lock` | held by the process that fetches a file of such a name (or from such an address)    |
| `<4 hex digits>.partial` | what that process has fetched so far                                             |
| `changes.lock`     | held for a moment by the process that puts a file in its place or removes some         |

A process that reads a file holds a shared lock on it; the kernel ends the lock with the process. Only files that nobody
reads are removed. Each use compares the content with the name, so nothing here needs trust.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from filelock import FileLock, Timeout

from producer.jobs.fetch.pace import LOOK_EVERY_S, check_interruption
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import FetchTimeout, NotHere, OtherWeights, WorkerError
from producer.jobs.model.redaction import redact
from worker import metrics
from worker.supervise.private_folder import make_private

log = logging.getLogger(__name__)

#: Fetches an address into a file within so many seconds; its OSErrors are of the file.
Fetch = Callable[[str, BinaryIO, float], object]

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_CHANGES: Final = "changes"
_NAME: Final = re.compile(r"[0-9a-f]{64}")


class WeightsFiles:
    """One user's weights files on this machine; safe to share between threads and processes.

    Args:
        folder: Where they are; made if need be, readable for its owner alone. One that cannot be used costs a warning
            and a fetch each time.
        max_bytes: What all files may take; those used longest ago are removed first. One that is being fetched, and
            those that are being read, come on top.
        fetch: Brings them.
        timeout_s: What fetching one may take, waiting for another process that fetches it included.
    """

    def __init__(self, folder: Path, max_bytes: int, fetch: Fetch, timeout_s: float) -> None:
        self._folder, self._max_bytes, self._fetch, self._timeout_s = folder, max_bytes, fetch, timeout_s

    @contextmanager
    def file(self, uri: str, sha256: str | None = None) -> Iterator[Path]:
        """Give a file with the content of an address; it stays in place within the `with`.

        Args:
            uri: An address that `fetch` understands.
            sha256: Of the content, where it is known: a file with it is then used. Else the address is fetched in any
                case, as its content may change.

        Raises:
            FetchError: The address cannot be fetched.
            OtherWeights: The address has other content than `sha256` says.
            NotHere: Another process takes too long to fetch the same.
            WorkerError: The disk is full.
            Interrupted: As `pace.interruptible` says, also while another process fetches.
        """
        with ExitStack() as held:
            try:
                path = held.enter_context(self._kept(uri, sha256))
            except OSError as error:
                log.warning(
                    "action=weights_not_kept Weights files cannot be kept in %s (%s); each process fetches its own.",
                    self._folder,
                    error.strerror or error,
                )
                if error.errno in _DISK_FULL:
                    # Files kept for later must not be what fills the disk now.
                    with suppress(OSError), self._locked(_CHANGES, self._timeout_s):
                        self._make_room(self._max_bytes)
                path = held.enter_context(self._temporary(uri, sha256))
            yield path

    @contextmanager
    def _temporary(self, uri: str, sha256: str | None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="gradcam-weights-") as folder:
            path = Path(folder) / "weights"
            try:
                self._fetch_to(path, uri, sha256, self._timeout_s)
            except OSError as error:
                raise WorkerError(
                    f"weights can be written neither to {self._folder} nor to {tempfile.gettempdir()} "
                    f"({error.strerror or error})"
                ) from None
            yield path

    @contextmanager
    def _kept(self, uri: str, sha256: str | None) -> Iterator[Path]:
        make_private(self._folder)
        file = None if sha256 is None else self._opened(sha256)
        fetched = file is None
        if file is None:
            file, sha256 = self._fetched(uri, sha256)
        else:
            metrics.weights_file(fetched=False)
        try:
            yield self._folder / str(sha256)
        finally:
            file.close()
            if fetched:
                # The file itself may be larger than the limit.
                with suppress(OSError, NotHere):
                    self._tidy()

    def _opened(self, sha256: str) -> BinaryIO | None:
        """Open a file whose content fits its name; no process removes it before it is closed."""
        path = self._folder / sha256
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        # It may have been removed between the two lines above.
        if os.fstat(file.fileno()).st_nlink and sha256_of(path) == sha256:
            os.utime(path)
            return file
        file.close()
        return None

    def _fetched(self, uri: str, sha256: str | None) -> tuple[BinaryIO, str]:
        """Fetch a file, or wait for another process that fetches it; return it open, as above, with its SHA-256."""
        # 65,536 locks for all files: two files that share a lock wait for each other, which may be for half an hour. No
        # lock is ever removed, as nobody could do that safely.
        name = (sha256 or hashlib.sha256(uri.encode()).hexdigest())[:4]
        partial = self._folder / f"{name}.partial"
        until = time.monotonic() + self._timeout_s
        with self._locked(name, self._timeout_s):
            if sha256 is not None and (file := self._opened(sha256)) is not None:
                metrics.weights_file(fetched=False)  # by another process, while this one waited
                return file, sha256
            try:
                # This removes what a killed process left.
                found = self._fetch_to(partial, uri, sha256, until - time.monotonic())
                return self._put(partial, found), found
            finally:
                partial.unlink(missing_ok=True)

    def _put(self, partial: Path, sha256: str) -> BinaryIO:
        """Move a fetched file to its place and open it, unless it is there already: then somebody may read it."""
        with self._locked(_CHANGES, self._timeout_s):
            if (there := self._opened(sha256)) is not None:
                return there
            self._make_room(partial.stat().st_size)
            file = partial.open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)
            os.replace(partial, self._folder / sha256)
            return file

    @contextmanager
    def _locked(self, name: str, timeout_s: float) -> Iterator[None]:
        """Hold one of the locks. Raises NotHere if it cannot be had in time."""
        try:
            lock = acquired(self._folder / f"{name}.lock", timeout_s)
        except Timeout:
            raise NotHere(
                f"another process has been fetching weights for more than {timeout_s:.0f} s; "
                "`gradcam retry` tries again"
            ) from None
        with lock:
            yield

    def _fetch_to(self, path: Path, uri: str, sha256: str | None, timeout_s: float) -> str:
        """Fetch into a file and return its SHA-256. Raises OSError when it cannot be written."""
        try:
            # Not what lies there: it may be a link from when others could write here.
            path.unlink(missing_ok=True)
            with path.open("xb") as file:
                self._fetch(uri, file, timeout_s)
        except FetchTimeout as error:
            if timeout_s > self._timeout_s / 2:
                raise
            # Waiting for another process took the time: no other address would help.
            raise NotHere(
                f"another process was fetching weights for so long that {error}; `gradcam retry` tries again"
            ) from None
        found = sha256_of(path)
        if sha256 is not None and found != sha256:
            raise OtherWeights(
                f"the weights at {redact(uri)} are not those that were uploaded: submit them again", found
            )
        metrics.weights_file(fetched=True)
        return found

    def _make_room(self, size_bytes: int) -> None:
        """Remove files, those used longest ago first, until so many bytes fit; never one that somebody reads.

        The caller holds the lock of changes: a name found unread must not become another file's before it is removed.
        """
        files = []
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        too_many_bytes = sum(size for _, size, _ in files) + size_bytes - self._max_bytes
        for _, size, path in sorted(files):
            if too_many_bytes <= 0:
                return
            if _remove_unread(path):
                too_many_bytes -= size

    def _tidy(self) -> None:
        """Enforce the limit, and remove what killed processes were fetching."""
        with self._locked(_CHANGES, self._timeout_s):
            self._make_room(0)
        for partial in self._folder.glob("*.partial"):
            with suppress(NotHere), self._locked(partial.stem, timeout_s=0):
                partial.unlink(missing_ok=True)


def acquired(path: Path, timeout_s: float) -> AbstractContextManager[object]:
    """Acquire a lock of processes, and look meanwhile whether anybody still waits for what it guards.

    Raises:
        Timeout: It cannot be had in time.
        Interrupted: As `pace.interruptible` says.
    """
    lock, until = FileLock(path), time.monotonic() + timeout_s
    while True:
        try:
            return lock.acquire(timeout=min(max(until - time.monotonic(), 0), LOOK_EVERY_S))
        except Timeout:
            if time.monotonic() >= until:
                raise
        check_interruption()


def _remove_unread(path: Path) -> bool:
    """Remove a file unless a process reads it; say whether it is gone."""
    try:
        with path.open("r+b") as file:  # NFS locks nothing exclusively that cannot be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:  # another process was faster
        return True
    except BlockingIOError:
        return False
    return True
