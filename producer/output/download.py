"""Pictures come to this disk: many at once, each whole or not at all, and none that is there already."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs.model.errors import StoreError, UsageError
from producer.output.atomic_file import atomic_file
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


def check_folder(output_dir: Path) -> None:
    """Make sure that a folder is there and can be written to, or can be made. Raises UsageError."""
    why = _why_not(output_dir)
    if why is not None:
        raise UsageError(f"cannot write to {str(output_dir)[:200]} ({why}): choose another --output-dir")


def _why_not(output_dir: Path) -> str | None:
    for folder in (output_dir, *output_dir.absolute().parents):
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


def download(objects: Objects, wanted: Iterable[Picture], output_dir: Path) -> Iterator[Fetched]:
    """Fetch pictures, in their order; memory stays flat.

    A picture is there already when its file has the object's size and is no older: an image that ended since an earlier
    download may have taken over a name.

    Raises:
        UsageError: The folder cannot be written to.
        StoreError: Some pictures could not be read; all others were fetched before.
        JobError, WorkerError: The store cannot be used.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {output_dir} ({error.strerror}): choose another --output-dir") from None

    def looked_up() -> Iterator[tuple[Picture, Fetched]]:
        for picture in wanted:
            path = output_dir / picture.name
            yield picture, Fetched(picture.index, path, _is_there(path, objects, picture.address))

    def fetch(item: tuple[Picture, Fetched]) -> Fetched | StoreError:
        picture, fetched = item
        if not fetched.already:
            try:
                data = objects.get(picture.address)
            except StoreError as error:
                return error
            with atomic_file(fetched.path) as file:
                file.write(data)
        return fetched

    lost: list[StoreError] = []
    with (
        ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="download") as pool,
        closing(prefetch_map(pool, fetch, looked_up(), depth=4 * DOWNLOAD_THREADS)) as stream,
    ):
        for fetched in stream:
            if isinstance(fetched, StoreError):
                lost.append(fetched)
            else:
                yield fetched
    if lost:
        raise StoreError(
            f"{len(lost)} pictures could not be read, all others are in {output_dir}; the first: {lost[0]}; "
            f"`gradcam audit {objects.job}` lists what is missing"
        )


def _is_there(path: Path, objects: Objects, address: str) -> bool:
    try:
        here = path.stat()
    except OSError:
        return False
    entry = objects.entry(address) if stat.S_ISREG(here.st_mode) else None
    if entry is None or here.st_mtime < entry.modified.timestamp():
        return False
    return entry.size_bytes in {None, here.st_size}
