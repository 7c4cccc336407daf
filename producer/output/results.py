"""What is known of each image of a job: its manifest as a stream, read here for results, audits and rebuilds alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, groupby
from typing import TYPE_CHECKING, Final, TypeAlias

from producer.jobs.model import keys
from producer.output.manifest import ChunkRecords
from producer.output.prefetch import prefetch_map

if TYPE_CHECKING:
    from producer.jobs.model.keys import ManifestPart
    from producer.jobs.store.bucket import Storage

#: Chunks whose manifests are fetched at once, and how many may lie here unread: up to half a megabyte each.
MANIFEST_THREADS = 8
_CHUNKS_AHEAD = 2 * MANIFEST_THREADS
_KEEP = b'"keep":{'
#: So many images' bits are read at a time; then their manifests are listed, since these are written before the bits.
_IMAGES_AT_ONCE = 16_384

#: The parts of one chunk's manifest: object, whose it is, and its bytes, in the order in which they count.
Parts: TypeAlias = list[tuple[str, "ManifestPart", int]]
#: Nothing longer is read of a part: a chunk's items with what is carried along are half of it at most.
MAX_PART_BYTES: Final = 128 * 2**20
#: Gives the ItemState bytes of so many items from a first one on; fewer where no later one has its end.
States: TypeAlias = Callable[[int, int], bytes]


def read_chunks(
    storage: Storage, job: str, chunk_size: int, *, states: States | None = None, since: int = 0
) -> Iterator[ChunkRecords]:
    """Read the manifest, chunk by chunk in order.

    Chunks are fetched ahead of the reader, many at once; memory stays flat.

    Args:
        storage: Our bucket.
        job: Its id.
        chunk_size: Images a chunk.
        states: The bits of the job table: then every chunk with an image that has its end comes, with or without
            records. Where there is none, only what has records, all by the records alone.
        since: Parts with a lower token are of an earlier life of the job's name: they do not count.

    Raises:
        StoreError, JobError, WorkerError: The store cannot be used.
    """

    def fetch(chunk: tuple[ChunkRecords, Parts]) -> ChunkRecords:
        return read_parts(storage, chunk[0], chunk[1], chunk_size)

    if states is None:
        found: Iterator[tuple[ChunkRecords, Parts]] = (
            (ChunkRecords(number, number * chunk_size), parts)
            for number, parts in manifest_parts(storage, job, since=since)
        )
    else:
        found = _with_states(storage, job, chunk_size, states, since)
    with (
        ThreadPoolExecutor(MANIFEST_THREADS, thread_name_prefix="manifest") as pool,
        closing(prefetch_map(pool, fetch, found, depth=_CHUNKS_AHEAD)) as chunks,
    ):
        yield from chunks


def _with_states(
    storage: Storage, job: str, chunk_size: int, states: States, since: int
) -> Iterator[tuple[ChunkRecords, Parts]]:
    chunks = max(1, _IMAGES_AT_ONCE // chunk_size)
    wanted = chunks * chunk_size
    for begin in count(0, chunks):
        known = states(begin * chunk_size, wanted)
        if any(known):
            parts = dict(manifest_parts(storage, job, begin=begin, end=begin + chunks, since=since))
            for number in range(begin, begin + chunks):
                first = (number - begin) * chunk_size
                of_chunk = known[first : first + chunk_size]
                if any(of_chunk):
                    yield ChunkRecords(number, number * chunk_size, of_chunk), parts.get(number, [])
        if len(known) < wanted:
            return


def manifest_parts(
    storage: Storage, job: str, *, begin: int = 0, end: int | None = None, since: int = 0
) -> Iterator[tuple[int, Parts]]:
    """The manifest's objects, chunk by chunk in order; of each chunk in the order in which they count.

    Args:
        storage: Our bucket.
        job: Its id.
        begin: The first chunk.
        end: The chunk before which it ends.
        since: As `read_chunks`.
    """
    prefix = keys.manifest_prefix(storage.prefix, job)
    listed = storage.sizes(prefix, after=f"{prefix}{begin:08d}" if begin else "")
    named = ((key, part, size) for key, size in listed if (part := keys.manifest_part(key)) is not None)
    for chunk, group in groupby(named, key=lambda entry: entry[1].chunk):
        if end is not None and chunk >= end:
            return
        parts = [(key, part, size) for key, part, size in group if part.token >= since]
        if parts:
            yield chunk, sorted(parts, key=lambda entry: entry[1])


def read_parts(storage: Storage, chunk: ChunkRecords, parts: Parts, chunk_size: int) -> ChunkRecords:
    """Read parts of a chunk's manifest into what is known of it. Errors as `read_chunks`."""
    for key, part, size_bytes in parts:
        if size_bytes > MAX_PART_BYTES:
            chunk.refuse(key)
        else:
            chunk.add(key, part, storage.get(key), chunk_size)
    return chunk


def read_kept_names(storage: Storage, job: str, *, since: int = 0) -> list[str]:
    """The names of all kept columns, in the order in which they turn up; several times as fast as `read_chunks`."""

    def fetch(chunk: tuple[int, Parts]) -> list[bytes]:
        return [storage.get(key) for key, _, size_bytes in chunk[1] if size_bytes <= MAX_PART_BYTES]

    names: dict[str, None] = {}
    with (
        ThreadPoolExecutor(MANIFEST_THREADS, thread_name_prefix="manifest") as pool,
        closing(prefetch_map(pool, fetch, manifest_parts(storage, job, since=since), depth=_CHUNKS_AHEAD)) as chunks,
    ):
        for content in (content for parts in chunks for content in parts if _KEEP in content):
            names.update(dict.fromkeys(_kept_names(content.splitlines())))
    return list(names)


def _kept_names(lines: Iterable[bytes]) -> Iterator[str]:
    read = json.JSONDecoder().raw_decode
    # Nothing but a key can look like it: inside a text, its quotation marks have backslashes before them.
    for rest in (rest for _, found, rest in (line.partition(_KEEP) for line in lines) if found):
        try:
            yield from read("{" + rest.decode())[0]
        except (ValueError, RecursionError):
            continue  # a torn line, which the reader of results counts
