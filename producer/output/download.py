"""Pictures come to this disk: many at once, each whole or not at all, and none that is there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.model.errors import StoreError, UsageError
from producer.jobs.model.text import counted
from producer.output.download_folder import DownloadFolder, NotOurs
from producer.output.prefetch import prefetch_map

if TYPE_CHECKING:
    from producer.output.objects import Objects
    from producer.output.pictures import Picture

DOWNLOAD_THREADS = 16


@dataclass(frozen=True, slots=True)
class Fetched:
    """One picture that is on this disk."""

    #: The image's.
    index: int
    path: Path
    #: It was there before, whole.
    already: bool


class Downloaded(list[Path]):
    """The files of a job's pictures."""

    #: How many of them were there before.
    already: int = 0

    @classmethod
    def of(cls, stream: Iterable[Fetched], progress: Callable[[Path], None] | None = None) -> Downloaded:
        """Fetch all of a stream.

        Args:
            stream: The pictures.
            progress: Called with each file that is there.
        """
        files = cls()
        for fetched in stream:
            files.append(fetched.path)
            files.already += fetched.already
            if progress:
                progress(fetched.path)
        return files


def download(objects: Objects, wanted: Iterable[Picture], output_dir: Path) -> Iterator[Fetched]:
    """Fetch pictures, in their order; memory stays flat.

    A picture is there already when its file has the object's size and is no older: an image that ended since an earlier
    download may have taken over a name.

    Raises:
        UsageError: The folder cannot be written to; or something else is there under the names of some pictures, which
            stays: all others were fetched before.
        StoreError: Some pictures could not be read; all others were fetched before.
        JobError, WorkerError: The store cannot be used.
    """
    with DownloadFolder(output_dir, objects.job) as folder:
        yield from _download(objects, wanted, folder)


def _download(objects: Objects, wanted: Iterable[Picture], folder: DownloadFolder) -> Iterator[Fetched]:
    def looked_up() -> Iterator[tuple[Picture, Fetched]]:
        for picture in wanted:
            already = _is_there(folder.file(picture.name), objects, picture.address)
            yield picture, Fetched(picture.index, folder.path / picture.name, already)

    def fetch(item: tuple[Picture, Fetched]) -> Fetched | StoreError | NotOurs:
        picture, fetched = item
        if not fetched.already:
            try:
                folder.write(picture.name, objects.get(picture.address))
            except (StoreError, NotOurs) as error:
                return error
        return fetched

    lost, refused = list[StoreError](), list[NotOurs]()
    with (
        ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="download") as pool,
        closing(prefetch_map(pool, fetch, looked_up(), depth=4 * DOWNLOAD_THREADS)) as stream,
    ):
        for fetched in stream:
            if isinstance(fetched, StoreError):
                lost.append(fetched)
            elif isinstance(fetched, NotOurs):
                refused.append(fetched)
            else:
                yield fetched
    told = (
        f"{counted(len(refused), 'picture was', 'pictures were')} not written, the first: {refused[0]}"
        if refused
        else ""
    )
    if lost:
        raise StoreError(
            f"{counted(len(lost), 'picture')} could not be read, all others are in {folder.path}; the first: "
            f"{lost[0]}; `gradcam audit {objects.job}` lists what is missing" + (f"; {told}" if told else "")
        )
    if told:
        raise UsageError(f"{told}; all others are in {folder.path}")


def _is_there(here: os.stat_result | None, objects: Objects, address: str) -> bool:
    entry = objects.entry(address) if here is not None else None
    if here is None or entry is None or here.st_mtime < entry.modified.timestamp():
        return False
    return entry.size_bytes in {None, here.st_size}
