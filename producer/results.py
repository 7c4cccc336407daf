"""What a job made: its manifest lines, and its pictures on this disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs import keys
from producer.jobs.ahead import ahead
from producer.jobs.errors import UsageError
from producer.jobs.spec import Result

if TYPE_CHECKING:
    from producer.jobs.storage import Storage

DOWNLOAD_THREADS = 16


def read_results(storage: Storage, job: str) -> Iterator[Result]:
    """Read the manifest, in the order of the images; of an image written twice, done beats failed.

    Memory holds one chunk at a time.
    """
    for _, parts in manifest_parts(storage, job):
        merged = merge(storage, parts)
        yield from (merged[index] for index in sorted(merged))


def manifest_parts(storage: Storage, job: str) -> Iterator[tuple[int, list[str]]]:
    """The manifest's objects, chunk by chunk in order; of each chunk in the order they were written."""
    prefix = keys.manifest_prefix(storage.prefix, job)
    for chunk, parts in groupby(storage.keys(prefix), key=lambda key: key.removeprefix(prefix).split("-", 1)[0]):
        if chunk.isdigit():
            yield int(chunk), list(parts)


def merge(storage: Storage, parts: Iterable[str]) -> dict[int, Result]:
    """What parts of a chunk's manifest say of each image: done beats failed, and a later word an earlier one."""
    merged: dict[int, Result] = {}
    for part in parts:
        for line in storage.get(part).splitlines():
            result = Result.model_validate_json(line)
            known = merged.get(result.index)
            if known is None or known.state != "done" or result.state == "done":
                merged[result.index] = result
    return merged


def download(
    storage: Storage, job: str, output_dir: Path, *, progress: Callable[[Path], None] | None = None
) -> list[Path]:
    """Fetch all pictures of a job, many at once, each written whole or not at all.

    Returns:
        The files, named as the original program names them; the index goes before a name that two images share.

    Raises:
        UsageError: The folder cannot be written to.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {output_dir} ({error.strerror}): choose another --output-dir") from None

    mode = _usual_mode()

    def fetch(wanted: tuple[str, Path]) -> Path:
        key, path = wanted
        _write_whole(path, storage.get(key), mode)
        return path

    paths = []
    with ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="download") as pool:
        for path in ahead(pool, fetch, _pictures(storage, job, output_dir), depth=4 * DOWNLOAD_THREADS):
            paths.append(path)
            if progress:
                progress(path)
    return paths


def _pictures(storage: Storage, job: str, output_dir: Path) -> Iterator[tuple[str, Path]]:
    ours = keys.job_prefix(storage.prefix, job)
    taken: set[str] = set()
    for result in read_results(storage, job):
        for key in result.objects.values():
            # The manifest is data: it names neither other people's objects nor files elsewhere on this disk.
            if not key.startswith(ours):
                continue
            name = keys.safe(key.rsplit("/", 1)[-1])
            if name in taken:
                name = f"{result.index:08d}-{name}"
            taken.add(name)
            yield key, output_dir / name


def _usual_mode() -> int:
    """The mode of new files: mkstemp's are for their owner alone, pictures for everybody the folder is for."""
    # It can only be read by setting it, for the whole process: once, before there are threads.
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def _write_whole(path: Path, data: bytes, mode: int) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(partial).chmod(mode)
        Path(partial).replace(path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path} ({error.strerror})") from None
        raise
