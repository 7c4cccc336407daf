"""What a job made, as a client reads it: records, pictures, addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from producer.jobs.errors import StoreError, UsageError
from producer.output.download import Fetched, download
from producer.output.export import (
    Format,
    check_format,
    columns,
    format_of,
    write_csv,
    write_jsonl,
    write_parquet,
)
from producer.output.manifest import Damages
from producer.output.objects import Objects
from producer.output.pictures import Picture, chosen_kinds, pictures
from producer.output.results import read_chunks, read_kept_names
from producer.output.where import Where, parse_where
from producer.output.whole import whole

if TYPE_CHECKING:
    from producer.jobs.spec import JobSpec, Result
    from producer.jobs.storage import Storage
    from producer.output.results import States

#: S3's own limit for presigned addresses.
LONGEST_S = 7 * 86_400


class Incomplete(StoreError):
    """Of some images nothing is known; of all others everything was read before."""


@dataclass(frozen=True, slots=True)
class Link:
    """An address at which anybody can read a picture for a while."""

    #: The image's.
    index: int
    #: `cam`, …; with several classes `class281-cam`.
    kind: str
    url: str


class Made:
    """What one job made. What is asked for is checked at once, and read as it is needed.

    Args:
        storage: Our bucket.
        job: Its id.
        spec: What it computes.
        states: The bits of the job table.
        ended: Gives how many images have their end, as the job table counts them.
        since: Records with a lower token are of an earlier life of the job's name.
    """

    def __init__(
        self,
        storage: Storage,
        job: str,
        spec: JobSpec,
        *,
        states: States,
        ended: Callable[[], int],
        since: int = 0,
    ) -> None:
        self._storage, self._job, self._spec = storage, job, spec
        self._states, self._ended, self._since = states, ended, since

    def _all(self) -> Iterator[Result]:
        """What is known of each image; an error at the end where less is known than the job table says."""
        before, known, unknown, damages = self._ended(), 0, 0, Damages()
        for chunk in read_chunks(
            self._storage, self._job, self._spec.chunk_size, states=self._states, since=self._since
        ):
            for result in chunk.results():
                known += 1
                yield result
            if missing := chunk.unknown():
                unknown += missing
                damages.note(chunk.damage)
        # Counters without bits: Redis lost a part of the job. A retry may have begun meanwhile, then they count less.
        unknown = max(unknown, min(before, self._ended()) - known)
        if unknown:
            raise Incomplete(
                f"of {unknown} images nothing is known: {damages}; `gradcam audit {self._job}` says which, "
                "and --repair explains them again"
            )

    def results(self, where: Iterable[str], *, failed: bool) -> Iterator[Result]:
        """See `Client.results`."""
        return filter(parse_where(where, failed=failed), self._all())

    def fetch(self, output_dir: Path, only: Iterable[str], where: Iterable[str]) -> Iterator[Fetched]:
        """See `Client.fetch`."""
        objects = Objects(self._storage, self._job)
        return download(objects, self._pictures(objects, only, parse_where(where)), output_dir)

    def urls(self, expires_s: float, only: Iterable[str], where: Iterable[str]) -> Iterator[Link]:
        """See `Client.urls`."""
        if not 1 <= expires_s <= LONGEST_S:
            raise UsageError("a presigned address is good for 1 second to 7 days")
        objects = Objects(self._storage, self._job)
        return (
            Link(picture.index, picture.kind, objects.url(picture.address, expires_s=expires_s))
            for picture in self._pictures(objects, only, parse_where(where))
        )

    def export(
        self, file: Path | BinaryIO, format: Format | None, only: Iterable[str], where: Iterable[str], *, failed: bool
    ) -> int:
        """See `Client.export`."""
        if format is None:
            if not isinstance(file, Path):
                raise UsageError("say the format of what is written to an open file")
            format = format_of(file.name)
        check_format(format)
        only = tuple(only)
        kinds, wanted = chosen_kinds(self._spec, only), parse_where(where, failed=failed)

        lost: list[Incomplete] = []

        def read() -> Iterator[Result]:
            try:
                yield from filter(wanted, self._all())
            except Incomplete as error:
                lost.append(error)  # what is known is written whole, then it is told

        def write(file: BinaryIO) -> int:
            if format == "jsonl":
                return write_jsonl(read(), file, kinds if only else None)
            # First, all of them: a table has its columns from the beginning, whatever is asked for.
            kept = read_kept_names(self._storage, self._job, since=self._since)
            table = columns(self._spec, kinds, kept, self._storage.uri)
            return (write_csv if format == "csv" else write_parquet)(read(), table, file)

        if isinstance(file, Path):
            with whole(file) as opened:
                count = write(opened)
        else:
            count = write(file)
        if lost:
            raise lost[0]
        return count

    def _pictures(self, objects: Objects, only: Iterable[str], where: Where) -> Iterator[Picture]:
        kinds = chosen_kinds(self._spec, only)
        return pictures(self._all(), objects, kinds=kinds, where=where)
