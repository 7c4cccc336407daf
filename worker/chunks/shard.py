"""A chunk's pictures in one tar, as webdataset reads it: millions of small objects cost more than the GPUs."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from producer.jobs.model import keys
from producer.jobs.model.errors import StoreError, WorkerError

if TYPE_CHECKING:
    from producer.jobs.model.results import Result
    from producer.jobs.store.bucket import Storage


class Shard:
    """A tar that grows on this disk, image by image, and goes to the store whole; used in a `with`.

    Members have no times and no owners: a chunk that is worked at again gives the same tar, under a name of its own.

    Args:
        storage: Our bucket.
        key: Its name, which no other holder of the chunk has.
        hold: Makes sure that the chunk is still ours.
    """

    def __init__(self, storage: Storage, key: str, *, hold: Callable[[], None]) -> None:
        self._storage, self.key, self._hold = storage, key, hold
        self._count = 0

    def __enter__(self) -> Self:
        try:
            # Without a name: whatever dies, nothing of it stays on the disk.
            self._file = tempfile.TemporaryFile(prefix="gradcam-shard-")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        except OSError as error:
            raise WorkerError(f"no shard can be written to {tempfile.gettempdir()} ({error.strerror})") from None
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the disk is full: what is written last is of no use any more
            self._tar.close()
        self._file.close()

    def add(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Write an image's pictures, and what is known of it.

        Args:
            result: Its line in the manifest.
            files: member name → content.

        Raises:
            WorkerError: The disk is full.
        """
        described = {keys.member(result.index, "json"): result.line.encode()}
        try:
            for name, content in (*files.items(), *described.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                self._tar.addfile(entry, io.BytesIO(content))
        except OSError as error:
            raise WorkerError(f"a shard cannot be written to {tempfile.gettempdir()} ({error.strerror})") from None
        self._count += 1

    def upload(self) -> None:
        """Write the tar to the store, unless there is nothing in it.

        Raises:
            WorkerError: The store does not take it; without it nothing of the chunk counts.
            JobError: See `Storage.check`.
            LeaseLost, ServiceError: The chunk is not ours any more, or nobody knows.
        """
        if not self._count:
            return
        self._hold()
        try:
            self._tar.close()
            self._storage.put_open_file(self.key, self._file)
        except OSError as error:
            raise WorkerError(f"a shard cannot be written to {tempfile.gettempdir()} ({error.strerror})") from None
        except StoreError as error:
            raise WorkerError(str(error)) from None
