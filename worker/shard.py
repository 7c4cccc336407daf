"""A chunk's pictures in one tar, as webdataset reads it: millions of small objects cost more than the GPUs."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from producer.jobs import keys
from producer.jobs.errors import StoreError, WorkerError

if TYPE_CHECKING:
    from producer.jobs.spec import Result
    from producer.jobs.storage import Storage


class Shard:
    """A tar that grows on this disk, image by image, and goes to the store whole; used in a `with`.

    Members have no times and no owners: a chunk that is worked at again gives the same tar.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self.key = storage, key
        self._count = 0

    def __enter__(self) -> Self:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="gradcam-shard-")
            self._path = Path(self._folder.name) / "shard.tar"
            self._tar = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)
        except OSError as error:
            raise WorkerError(f"no shard can be written to {tempfile.gettempdir()} ({error.strerror})") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()
        self._folder.cleanup()

    def add(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Write an image's pictures, and what is known of it.

        Args:
            result: Its line in the manifest.
            files: member name → content.

        Raises:
            WorkerError: The disk is full.
        """
        described = {keys.member(result.index, "json"): result.model_dump_json(exclude_none=True).encode()}
        try:
            for name, content in (*files.items(), *described.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                self._tar.addfile(entry, io.BytesIO(content))
        except OSError as error:
            raise WorkerError(f"a shard cannot be written to {self._path.parent} ({error.strerror})") from None
        self._count += 1

    def upload(self) -> None:
        """Write the tar to the store, unless there is nothing in it.

        Raises:
            WorkerError: The store does not take it; without it nothing of the chunk counts.
            JobError: See `Storage.check`.
        """
        self._tar.close()
        if not self._count:
            return
        try:
            self._storage.put_file(self.key, self._path)
        except StoreError as error:
            raise WorkerError(str(error)) from None
