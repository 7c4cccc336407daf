"""A chunk's pictures in one tar, as webdataset reads it: millions of small objects cost more than the GPUs."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Self

from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, WorkerError

if TYPE_CHECKING:
    from producer.jobs.model.results import Result
    from producer.jobs.store.bucket import Storage


@dataclass(frozen=True)
class _Member:
    """Where a member's content lies in the spool."""

    name: str
    start: int
    size: int


class Shard:
    """A tar of a chunk's pictures, made on this disk and sent to the store whole; used in a `with`.

    Images come in any order and leave in the chunk's; members have no times and no owners. So a chunk that is worked at
    again gives the same tar, under a name of its own.

    Args:
        storage: Our bucket.
        key: Its name, which no other holder of the chunk has.
        hold: Makes sure that the chunk is still ours.
    """

    def __init__(self, storage: Storage, key: str, *, hold: Callable[[], None]) -> None:
        self._storage, self.key, self._hold = storage, key, hold
        #: Index → its members, in their order.
        self._members: dict[int, list[_Member]] = {}

    def __enter__(self) -> Self:
        with _disk():
            # Without names: whatever dies, nothing of it stays on the disk.
            self._spool = tempfile.TemporaryFile(prefix="gradcam-shard-")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the disk is full: what is written last is of no use any more
            self._spool.close()

    def add(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Write an image's pictures, and what is known of it.

        Args:
            result: Its line in the manifest.
            files: member name → content.

        Raises:
            WorkerError: The disk is full.
        """
        described = {keys.member(result.index, "json"): result.line.encode()}
        members = self._members[result.index] = []
        with _disk():
            for name, content in (*files.items(), *described.items()):
                members.append(_Member(name, self._spool.tell(), len(content)))
                self._spool.write(content)

    def upload(self) -> None:
        """Write the tar to the store, unless there is nothing in it.

        Raises:
            WorkerError: The store does not take it; without it nothing of the chunk counts.
            JobError: See `Storage.check`.
            LeaseLost, ServiceError: The chunk is not ours any more, or nobody knows.
        """
        if not self._members:
            return
        self._hold()
        try:
            with _disk(), tempfile.TemporaryFile(prefix="gradcam-shard-") as file:
                self._write_tar(file)
                self._storage.put_open_file(self.key, file)
        except StoreError as error:
            raise WorkerError(str(error)) from None

    def _write_tar(self, file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for _, members in sorted(self._members.items()):
                for member in members:
                    entry = tarfile.TarInfo(member.name)
                    entry.size = member.size
                    self._spool.seek(member.start)
                    tar.addfile(entry, self._spool)


@contextmanager
def _disk() -> Iterator[None]:
    """What this disk refuses is said in a sentence. Raises WorkerError."""
    try:
        yield
    except OSError as error:
        raise WorkerError(f"a shard cannot be written to {tempfile.gettempdir()} ({error.strerror})") from None
