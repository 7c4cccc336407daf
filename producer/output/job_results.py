"""What a job made, as a client reads it: records, pictures, addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from producer.jobs.model.errors import StoreError, UsageError
from producer.jobs.model.text import counted
from producer.output.atomic_file import atomic_file
from producer.output.checks import check_classes, check_reason
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
from producer.output.filters import ResultFilter, Test, parse_where
from producer.output.manifest import Damages
from producer.output.objects import Objects
from producer.output.ordering import Order, check_limit, ordered, parse_order
from producer.output.pictures import Picture, chosen_kinds, pictures
from producer.output.results import read_chunks, read_kept_names

if TYPE_CHECKING:
    from producer.jobs.model.results import Result
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable
    from producer.output.results import States

#: S3's own limit for presigned addresses.
LONGEST_S = 7 * 86_400


class Incomplete(StoreError):
    """Of some images nothing is known; of all others everything was read before."""


@dataclass(frozen=True)
class ResultQuery:
    """Which images are asked for."""

    #: All of it must hold.
    where: tuple[str, ...] = ()
    #: And they failed.
    failed: bool = False
    #: In which order; that of the images when absent.
    order: Order | None = None
    #: The first so many.
    limit: int | None = None

    @classmethod
    def of(cls, where: Iterable[str], *, failed: bool = False, sort: str | None, limit: int | None) -> ResultQuery:
        """Check what was typed. Raises UsageError."""
        if isinstance(where, str):
            raise UsageError("where must be a list of expressions, not one alone")
        return cls(tuple(where), failed, parse_order(sort), limit)


@dataclass(frozen=True, slots=True)
class PictureUrl:
    """An address at which anybody can read a picture for a while."""

    #: The image's.
    index: int
    #: `cam`, …; with several classes `class281-cam`.
    kind: str
    url: str


class JobResults:
    """What one job made. What is asked for is checked at once, and read as it is needed.

    Args:
        storage: Our bucket.
        job: Its id.
        spec: What it computes.
        states: The bits of the job table.
        ended: Gives how many images have their end, as the job table counts them.
        check: Raises UsageError where something is asked that this job does not know.
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
        check: Callable[[ResultFilter], None] = lambda where: None,
        since: int = 0,
    ) -> None:
        self._storage, self._job, self._spec = storage, job, spec
        self._states, self._ended, self._check, self._since = states, ended, check, since

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
                f"of {counted(unknown, 'image')} nothing is known: {damages}; `gradcam audit {self._job}` says which, "
                "and --repair explains them again"
            )

    def _chosen(self, choice: ResultQuery, where: ResultFilter, lost: list[Incomplete]) -> Iterator[Result]:
        """The images asked for, in the order asked for; what is not known is noted in `lost`."""

        def known() -> Iterator[Result]:
            try:
                yield from filter(where, self._all())
            except Incomplete as error:
                lost.append(error)  # what is known comes whole, then it is told

        yield from ordered(known(), choice.order, choice.limit)

    def _where(self, choice: ResultQuery) -> ResultFilter:
        """What is asked, if it is anything this job knows."""
        where = parse_where(choice.where, failed=choice.failed)
        check_limit(choice.limit)
        if where:
            self._check(where)
        return where

    def results(self, choice: ResultQuery) -> Iterator[Result]:
        """See `Client.results`."""
        where, lost = self._where(choice), list[Incomplete]()

        def read() -> Iterator[Result]:
            count = 0
            for result in self._chosen(choice, where, lost):
                count += 1
                yield result
            if lost:
                raise lost[0]
            if not count:
                where.check_columns()

        return read()

    def fetch(self, output_dir: Path, only: Iterable[str], choice: ResultQuery) -> Iterator[Fetched]:
        """See `Client.fetch`."""
        objects = Objects(self._storage, self._job)
        return download(objects, self._pictures(objects, only, choice), output_dir)

    def urls(self, expires_s: float, only: Iterable[str], choice: ResultQuery) -> Iterator[PictureUrl]:
        """See `Client.urls`."""
        if not 1 <= expires_s <= LONGEST_S:
            raise UsageError("a presigned address is good for 1 second to 7 days")
        objects = Objects(self._storage, self._job)
        return (
            PictureUrl(picture.index, picture.kind, objects.url(picture.address, expires_s=expires_s))
            for picture in self._pictures(objects, only, choice)
        )

    def export(self, file: Path | BinaryIO, format: Format | None, only: Iterable[str], choice: ResultQuery) -> int:
        """See `Client.export`."""
        if format is None:
            if not isinstance(file, Path):
                raise UsageError("say the format of what is written to an open file")
            format = format_of(file.name)
        check_format(format)
        only = tuple(only)
        kinds, where, lost = chosen_kinds(self._spec, only), self._where(choice), list[Incomplete]()

        def write(file: BinaryIO) -> int:
            results = self._chosen(choice, where, lost)
            if format == "jsonl":
                count = write_jsonl(results, file, self._storage.uri, kinds if only else None)
                if not count:
                    where.check_columns()
                return count
            # First, all of them: a table has its columns from the beginning, whatever is asked for.
            kept = read_kept_names(self._storage, self._job, since=self._since)
            where.check_columns(kept)
            table = columns(self._spec, kinds, kept, self._storage.uri)
            return (write_csv if format == "csv" else write_parquet)(results, table, file)

        if isinstance(file, Path):
            with atomic_file(file) as opened:
                count = write(opened)
        else:
            count = write(file)
        if lost:
            raise lost[0]
        return count

    def _pictures(self, objects: Objects, only: Iterable[str], choice: ResultQuery) -> Iterator[Picture]:
        kinds, where = chosen_kinds(self._spec, only), self._where(choice)
        if choice.order is not None and choice.limit is None:
            raise UsageError("pictures are named by their images, not sorted: give --limit with --sort")

        def read() -> Iterator[Picture]:
            wanted: Test = where
            if choice.limit is not None:
                # First, which images: their pictures have the names that they have without the question.
                indices = {result.index for result in self._chosen(choice, where, [])}

                def wanted(result: Result) -> bool:
                    return result.index in indices

            count = 0
            for picture in pictures(self._all(), objects, kinds=kinds, where=wanted):
                count += 1
                yield picture
            if not count:
                where.check_columns()

        return read()


def open_results(table: JobTable, storage: Storage, job: str) -> JobResults:
    """The results of a job that the table knows. Raises UnknownJob."""
    queries, spec = table.queries, table.queries.existing_spec(job)

    def ended() -> int:
        status = queries.status(job)
        return status.done + status.failed

    def check(where: ResultFilter) -> None:
        status = queries.status(job)
        for one in where.conditions:
            if one.field == "reason" and not one.is_pattern:
                check_reason(one.value, status.failures)
        # Asked after the count: what is done meanwhile only adds to it.
        check_classes(where, spec, queries.histogram(job), status.done)

    states = partial(queries.states_at, job)
    return JobResults(storage, job, spec, states=states, ended=ended, check=check, since=queries.since(job))
