"""What the user names becomes a stream of images: addresses as they are, local files to be uploaded.

| argument                                | becomes                                                              |
|-----------------------------------------|----------------------------------------------------------------------|
| `s3://bucket/key`                       | that object                                                          |
| `s3://bucket/prefix/`                   | every image below it, listed                                         |
| `http://…`, `https://…`                 | that address, fetched by the worker                                  |
| `file:///path`                          | that file *on the workers' machines*, where they allow it            |
| a file                                  | that file, uploaded under the job                                    |
| a folder, a pattern such as `a/**/*.png`| every image under it, sorted by path, uploaded under the job         |
| `.txt .csv .tsv .jsonl .ndjson .parquet`| every image that this list names; here, on S3 or on a web server      |
| `-`                                     | the lines of standard input, a list                                  |

What a stranger may have put into a folder or a list is not uploaded without a word: links that lead outside of a folder
need `--follow-links`, files outside of a list's own folder, and any that standard input names, `--allow-local`.

Lists (`lists.py`), folders (`folders.py`) and prefixes (`prefixes.py`) are read as streams, so that millions of images
need no more memory than hundreds, and again from the beginning as often as one likes.
"""

from __future__ import annotations

import os
import random
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias
from urllib.parse import unquote

from producer.input.display import named, printable
from producer.input.folders import Folder, Pattern, is_pattern
from producer.input.lists import LIST_SUFFIXES, Kind, ListFile, kind_of
from producer.input.prefixes import Listing
from producer.input.read_options import ReadOptions
from producer.input.rows import MAX_CLASS_CHARS, PLAIN, check_address, class_of, id_of, label_of
from producer.input.source import SUFFIXES, Source, check_image
from producer.input.source_group import SourceGroup
from producer.input.spooled import LocalFile, from_address, from_pipe
from producer.jobs.model.errors import UsageError
from producer.jobs.model.redaction import redact
from producer.jobs.model.text import counted, quoted, shown

if TYPE_CHECKING:
    from producer.input.bad_rows import BadRow
    from producer.jobs.store.bucket import Storage

__all__ = ["SUFFIXES", "ReadOptions", "Source", "Sources", "open_sources", "printable"]

#: An argument of the command line, or of the Python client.
Argument: TypeAlias = str | os.PathLike[str] | Source
_EVERYTHING = ReadOptions()
_QUERY = re.compile(r"\?[^/]*=")


class Sources:
    """The images that were named, in their order; each loop over them begins anew and gives the same."""

    def __init__(self, parts: list[SourceGroup], reading: ReadOptions) -> None:
        self._parts = parts
        self._reading = reading

    @property
    def count(self) -> int | None:
        """How many there are; none while only reading them all would tell."""
        total = self._named
        caps = (self._reading.limit, self._reading.sample)
        return None if total is None else min([total, *(cap for cap in caps if cap is not None)])

    @property
    def _named(self) -> int | None:
        """How many the parts have; where there is a limit, no fewer than matter."""
        counts = [part.count for part in self._parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def __iter__(self) -> Iterator[Source]:
        """Read the images.

        Raises:
            UsageError: A listing holds what cannot be used, or a list or a folder has changed since it was checked.
        """
        every: Iterator[Source] = chain.from_iterable(chain.from_iterable(part.batches() for part in self._parts))
        if self._reading.label_from is not None:
            every = map(_with_folder, every)
        limited = every if self._reading.limit is None else islice(every, self._reading.limit)
        if self._reading.sample is None:
            return limited
        named, limit = self._named or 0, self._reading.limit
        return _sampled(
            limited, self._reading.sample, named if limit is None else min(named, limit), self._reading.seed
        )

    @property
    def reading(self) -> ReadOptions:
        """How they are read."""
        return self._reading

    @property
    def left_out(self) -> Counter[str]:
        """Files of folders and prefixes that are no images by their names, by suffix; of a prefix, once it is read."""
        return sum((Counter(part.left_out) for part in self._parts), Counter())

    @property
    def bad_count(self) -> int:
        """How many rows of lists are left out because they cannot be used (`skip_bad`)."""
        return sum(part.bad.count for part in self._parts if part.bad is not None)

    def bad_rows(self) -> Iterator[BadRow]:
        """Read these rows."""
        return chain.from_iterable(part.bad for part in self._parts if part.bad is not None)

    def close(self) -> None:
        """Give back what was kept on the disk: lists from elsewhere, listings, standard input, bad rows."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_sources(
    arguments: Iterable[Argument],
    reading: ReadOptions = _EVERYTHING,
    *,
    storage: Callable[[], Storage] | None = None,
    stdin: BinaryIO | None = None,
) -> Sources:
    """Find the images that arguments mean, and make sure that they can be used before anything is sent.

    Lists are read through once, which also counts them; of a long listing the first pages are looked at.

    Args:
        arguments: Addresses, files, folders, patterns, lists, prefixes, `-`, or `Source`s. All of them are held.
        reading: Which columns of lists, which files of folders, and how many.
        storage: Gives the object store that listings and lists are read from; asked only when one is named.
        stdin: What `-` reads; standard input when absent.

    Raises:
        UsageError: Something cannot be used; names it, in lists with its line, and says what is allowed.
        ServiceError: The object store cannot be used from here.
    """
    if isinstance(arguments, str | os.PathLike | Source):
        raise UsageError("images must be a list of addresses, files and folders, not one alone")
    parts = _Opener(reading, storage, stdin).parts(arguments)
    if not parts:
        raise UsageError("nothing to explain: name images, lists, folders or addresses (`gradcam submit photos/`)")
    _check_reading(parts, reading)
    left = reading.limit
    for place, part in enumerate(parts):
        if left is not None and left <= 0:
            del parts[place:]
            break
        part.check(left, whole=reading.sample is not None)
        if left is not None and part.count is not None:
            left -= part.count
    sources = Sources(parts, reading)
    if sources.count == 0:
        first = next(sources.bad_rows())
        raise UsageError(f"none of the {counted(sources.bad_count, 'row')} can be used; the first: {first.sentence}")
    return sources


def reading_of(images: Iterable[Argument] | Sources, reading: ReadOptions | None) -> ReadOptions:
    """How images are read: as their sources were opened, or as is asked."""
    return images.reading if isinstance(images, Sources) else reading or _EVERYTHING


def opened(
    images: Iterable[Argument] | Sources, reading: ReadOptions | None, storage: Callable[[], Storage]
) -> AbstractContextManager[Sources]:
    """Open images for a `with`; sources that are open stay open, whoever opened them closes them."""
    return (
        nullcontext(images)
        if isinstance(images, Sources)
        else open_sources(images, reading or _EVERYTHING, storage=storage)
    )


def _check_reading(parts: list[SourceGroup], reading: ReadOptions) -> None:
    """Refuse options that would have no effect: who gave them expects one."""
    if reading.columns and not any(part.has_columns for part in parts):
        raise UsageError(
            f"there is no column {quoted(reading.columns[0])}: none of the arguments is a list with columns"
        )
    if (reading.include or reading.exclude) and not any(part.has_patterns for part in parts):
        raise UsageError("--include and --exclude choose from folders and s3:// prefixes: none of the arguments is one")

    if reading.skip_bad and not any(part.bad is not None for part in parts):
        raise UsageError(
            "--skip-bad leaves out rows of lists, and none of the arguments is a list: leave it out, a broken image "
            "fails alone"
        )


def _sampled(sources: Iterator[Source], count: int, total: int, seed: int) -> Iterator[Source]:
    """Draw without replacement, in order and without holding any (Knuth, The Art of Computer Programming, 3.4.2 S)."""
    draw = random.Random(seed).random  # noqa: S311 - chance, not secrecy
    for left, source in zip(range(total, 0, -1), sources, strict=False):
        if draw() * left < count:
            yield source
            count -= 1
            if not count:
                return


class _Opener:
    """Tells arguments apart."""

    def __init__(self, reading: ReadOptions, storage: Callable[[], Storage] | None, stdin: BinaryIO | None) -> None:
        self._reading = reading
        self._storage = storage
        self._stdin = stdin
        self._stdin_used = False

    def parts(self, arguments: Iterable[Argument]) -> list[SourceGroup]:
        """Find what arguments mean; nothing of it is read yet, and nothing far away is looked at."""
        parts: list[SourceGroup] = []
        for argument in arguments:
            for found in self._source(argument) if isinstance(argument, Source) else self._text(os.fspath(argument)):
                if isinstance(found, SourceGroup):
                    parts.append(found)
                elif parts and isinstance(parts[-1], _Named):
                    parts[-1].sources.append(found)
                else:
                    parts.append(_Named([found]))
        return parts

    def _source(self, own: Source) -> list[SourceGroup | Source]:
        """Check it as if it had been typed; its values then hold for each of its images."""
        id_of(own.id)
        class_of(own.class_id)
        label_of(own.label)
        if own.class_name is not None and not 0 < len(own.class_name) <= MAX_CLASS_CHARS:
            raise UsageError(f"the name of a class has 1 to {MAX_CLASS_CHARS} characters")
        found = self._text(own.uri or os.fspath(own.path or ""))
        return [_Owned(each, own) if isinstance(each, SourceGroup) else _owned(each, own) for each in found]

    def _text(self, text: str) -> Sequence[SourceGroup | Source]:
        if not text.strip():
            raise UsageError("an image has an empty name: is a variable of your shell not set?")
        if text == "-":
            return [self._standard_input()]
        return [self._address(text)] if "://" in text else self._local(text)

    def _address(self, text: str) -> SourceGroup | Source:
        scheme = text.partition("://")[0].lower()
        kind = kind_of(text if scheme == "s3" else re.split(r"[?#]", text, maxsplit=1)[0])
        if scheme == "s3" and text.endswith("/") and not text.endswith("://"):
            return Listing(text, self._reading, self._storage)
        if not PLAIN(text):
            check_address(text)
        if kind is None:
            return Source(text)
        if scheme == "file":
            raise UsageError(f"{redact(text)} is a list on the workers' machines: name one on this machine by its path")
        return ListFile(from_address(text, self._storage), kind, None, self._reading)

    def _local(self, text: str) -> Sequence[SourceGroup | Source]:
        path = os.path.expanduser(text)
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            # What looks like a query is an address without its beginning.
            if is_pattern(path) and not _QUERY.search(path):
                return self._pattern(path)
            raise UsageError(
                f"{named(text)} is neither a file nor a folder here, nor an address (s3://, http://, https://, file://)"
            ) from None
        if stat.S_ISDIR(mode):
            return [Folder(path, self._reading)]
        if not stat.S_ISREG(mode):
            raise UsageError(f"{quoted(text)} is a pipe or a device: name `-` and send a list to standard input")
        if kind := kind_of(path):
            return [self._list(path, kind)]
        check_image(path, f"; lists are {LIST_SUFFIXES}")
        return [Source(path=Path(path))]

    def _pattern(self, path: str) -> Sequence[SourceGroup]:
        if not kind_of(path):
            return [Folder(path, self._reading, Pattern(path))]
        every = ReadOptions(include=("*",), follow_links=self._reading.follow_links)
        paths = Folder(path, every, Pattern(path)).paths()
        lists = [self._list(found, kind) for found in paths if (kind := kind_of(found))]
        if not lists:
            raise UsageError(f"no lists match {shown(path)}")
        return lists

    def _list(self, path: str, kind: Kind) -> ListFile:
        folder = os.path.dirname(path)
        return ListFile(LocalFile(path), kind, folder, self._reading, os.path.realpath(folder))

    def _standard_input(self) -> ListFile:
        if self._stdin_used:
            raise UsageError("standard input can be read once only: name `-` once")
        self._stdin_used = True
        pipe = sys.stdin.buffer if self._stdin is None else self._stdin
        return ListFile(from_pipe("standard input", pipe), None, "", self._reading)


class _Named(SourceGroup):
    """Images named one by one."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources

    def check(self, at_most: int | None, *, whole: bool) -> None:
        self.count = len(self.sources)

    def batches(self) -> Iterator[list[Source]]:
        yield self.sources

    def close(self) -> None:
        """Nothing was kept."""


class _Owned(SourceGroup):
    """Images of one list, folder or prefix for which the user gave common values, such as a class."""

    def __init__(self, part: SourceGroup, own: Source) -> None:
        self._part, self._own = part, own
        self.has_columns, self.has_patterns, self.bad = part.has_columns, part.has_patterns, part.bad

    def check(self, at_most: int | None, *, whole: bool) -> None:
        self._part.check(at_most, whole=whole)
        self.count, self.left_out = self._part.count, self._part.left_out

    def batches(self) -> Iterator[list[Source]]:
        for batch in self._part.batches():
            yield [_owned(source, self._own) for source in batch]
        self.left_out = self._part.left_out

    def close(self) -> None:
        self._part.close()


def _owned(source: Source, own: Source) -> Source:
    has_class = own.class_id is not None or own.class_name is not None
    classes = own if has_class else source
    return source._replace(
        id=own.id if own.id is not None else source.id,
        class_id=classes.class_id,
        class_name=classes.class_name,
        keep=own.keep if own.keep is not None else source.keep,
        label=own.label if own.label is not None else source.label,
    )


def _with_folder(source: Source) -> Source:
    """Give a source the name of its folder as its label, unless it has a label or no folder."""
    folder = source.path.absolute().parent.name if source.path else _folder_of(source.uri or "")
    return source if source.label is not None or not folder else source._replace(label=label_of(printable(folder)))


def _folder_of(uri: str) -> str:
    scheme, _, place = uri.partition("://")
    _, *folders = re.split(r"[?#]", place, maxsplit=1)[0].split("/")[:-1] if scheme != "s3" else place.split("/")[:-1]
    return (folders[-1] if scheme == "s3" else unquote(folders[-1])) if folders else ""
