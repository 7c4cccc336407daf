"""What is known of each image of a job: its manifest, read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from typing import TYPE_CHECKING

from pydantic import ValidationError

from producer.jobs import keys
from producer.jobs.ahead import ahead
from producer.jobs.errors import JobError
from producer.jobs.spec import Result

if TYPE_CHECKING:
    from producer.jobs.storage import Storage

#: Chunks whose manifests are fetched at once, and how many may lie here unread: up to half a megabyte each.
MANIFEST_THREADS = 8
_CHUNKS_AHEAD = 2 * MANIFEST_THREADS
_KEEP = b'"keep":{'


def read_results(storage: Storage, job: str) -> Iterator[Result]:
    """Read the manifest, in the order of the images; of an image written twice, done beats failed.

    Chunks are fetched ahead of the reader, many at once; memory stays flat.

    Raises:
        JobError: A line is not of our making, or of another version's.
        StoreError, JobError, WorkerError: The store cannot be used.
    """
    for parts in _contents(storage, job):
        merged = _merged(parts)
        yield from (merged[index] for index in sorted(merged))


def read_kept_names(storage: Storage, job: str) -> list[str]:
    """The names of all kept columns, in the order in which they turn up; several times as fast as `read_results`."""
    names: dict[str, None] = {}
    read = json.JSONDecoder().raw_decode
    for parts in _contents(storage, job):
        # Nothing but a key can look like it: inside a text, its quotation marks have backslashes before them.
        for line in (line for _, content in parts if _KEEP in content for line in content.splitlines()):
            _, found, rest = line.partition(_KEEP)
            if found:
                names.update(dict.fromkeys(read("{" + rest.decode())[0]))
    return list(names)


def _contents(storage: Storage, job: str) -> Iterator[list[tuple[str, bytes]]]:
    """Each chunk's parts and their content, fetched ahead."""

    def fetch(chunk: tuple[int, list[str]]) -> list[tuple[str, bytes]]:
        return [(part, storage.get(part)) for part in chunk[1]]

    with (
        ThreadPoolExecutor(MANIFEST_THREADS, thread_name_prefix="manifest") as pool,
        closing(ahead(pool, fetch, manifest_parts(storage, job), depth=_CHUNKS_AHEAD)) as chunks,
    ):
        yield from chunks


def manifest_parts(storage: Storage, job: str) -> Iterator[tuple[int, list[str]]]:
    """The manifest's objects, chunk by chunk in order; of each chunk in the order they were written."""
    prefix = keys.manifest_prefix(storage.prefix, job)
    for chunk, parts in groupby(storage.keys(prefix), key=lambda key: key.removeprefix(prefix).split("-", 1)[0]):
        if chunk.isdigit():
            yield int(chunk), list(parts)


def merge(storage: Storage, parts: Iterable[str]) -> dict[int, Result]:
    """What parts of a chunk's manifest say of each image: done beats failed, and a later word an earlier one."""
    return _merged((part, storage.get(part)) for part in parts)


def _merged(parts: Iterable[tuple[str, bytes]]) -> dict[int, Result]:
    merged: dict[int, Result] = {}
    for part, content in parts:
        for line in content.splitlines():
            try:
                result = Result.model_validate_json(line)
            except ValidationError:
                raise JobError(f"{part} was written by another version of gradcam-queue: update this one") from None
            known = merged.get(result.index)
            if known is None or known.state != "done" or result.state == "done":
                merged[result.index] = result
    return merged
