"""What the source of one image is, which of them are wanted, and what every way to name many of them has in common."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fnmatch import translate
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from producer.jobs.model.errors import UsageError
from producer.jobs.model.frozen import Frozen
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.options import Option, advice

if TYPE_CHECKING:
    from producer.input.bad_rows import BadRows

#: What images are called, of folders, prefixes, patterns and lists alike; all of it is what the worker decodes.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in ["jpg", "jpeg", "jpe", "jif", "jfif", "mpo", "png", "apng", "bmp", "webp", "gif", "tif", "tiff"]
)
#: Sources handed on at once: enough to keep Python out of the loop, few enough to weigh nothing.
BATCH = 1000
_MAX_SHOWN_CHARS = 500
_NO_SUFFIX, _OTHERS = "without a suffix", "others"
#: Suffixes that are counted and shown apart, and what is shown of each: file names may end in anything.
_SUFFIXES_COUNTED, _SUFFIXES_SHOWN, _SUFFIX_CHARS = 1000, 8, 20
_IMAGE = re.compile(rf"[^/](?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})\Z", re.IGNORECASE)


class Source(NamedTuple):
    """One image, as the user named it: an address, or a local file that must be uploaded first."""

    uri: str | None = None
    path: Path | None = None
    #: What the user calls it; a local file's path when absent.
    id: str | None = None
    #: The class of this image alone, by number or by name.
    class_id: int | None = None
    class_name: str | None = None
    #: Further columns of its list, carried along as they are.
    keep: Mapping[str, str] | None = None
    #: What it shows, as the user says: the number or the name of a class.
    label: str | None = None


class ReadOptions(Frozen):
    """How lists, folders and prefixes are read, and how much of them.

    Raises:
        UsageError: A value cannot be used; names every such option.
    """

    uri_column: Annotated[str | None, Option(absent="uri, url, image_url, image, path, file, …")] = Field(
        None, description="Column of the address or path."
    )
    class_column: Annotated[str | None, Option()] = Field(
        None, description="Column of each image's own class, by number or name."
    )
    id_column: Annotated[str | None, Option()] = Field(
        None, description="Column of what you call an image; kept in results."
    )
    keep_columns: Annotated[tuple[str, ...], Option(by_commas=True)] = Field(
        (), description="Further columns to carry along into the results, by commas."
    )
    label_column: Annotated[str | None, Option()] = Field(
        None, description="Column of what each image shows, by number or name: results say what is correct."
    )
    label_from: Annotated[Literal["folder"] | None, Option()] = Field(
        None, description="The same by the name of the folder that an image lies in."
    )
    include: Annotated[tuple[str, ...], Option(repeatable=True)] = Field(
        (), description="Of a folder or prefix, only what matches, such as 'train/*.png'."
    )
    exclude: Annotated[tuple[str, ...], Option(repeatable=True)] = Field(
        (), description="Of a folder or prefix, not what matches."
    )
    limit: Annotated[Annotated[int, Field(ge=1, le=MAX_COUNT)] | None, Option()] = Field(
        None, description="Only the first so many images."
    )
    sample: Annotated[Annotated[int, Field(ge=1, le=MAX_COUNT)] | None, Option()] = Field(
        None, description="Only so many images, drawn at random, in their order."
    )
    seed: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT), Option()] = Field(
        0, description="Another number draws other images."
    )
    skip_bad: Annotated[bool, Option()] = Field(
        False, description="Leave out rows of lists that cannot be used, list them in a file."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _told_in_our_words(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise UsageError("; ".join(advice(cls, error))) from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that were asked for by name."""
        named = (self.uri_column, self.class_column, self.id_column, self.label_column, *self.keep_columns)
        return tuple(dict.fromkeys(name for name in named if name is not None))


class SourceGroup(ABC):
    """Some of the images that were named: a folder, a list, a prefix, or single ones in a row."""

    #: How many there are; none where only reading them all would tell. At least the limit where there is one.
    count: int | None = None
    #: Whether columns can be chosen in it.
    has_columns = False
    #: Whether patterns choose from it.
    has_patterns = False
    #: Files that are no images by their names, by suffix; those that patterns leave out are not among them.
    left_out: Mapping[str, int] = MappingProxyType({})
    #: Rows that cannot be used and were left out; none where nothing has rows.
    bad: BadRows | None = None

    @abstractmethod
    def check(self, at_most: int | None, *, whole: bool) -> None:
        """Look whether the images can be used, before anything is sent.

        Args:
            at_most: Look no further than the first so many.
            whole: Make the count known, and what is read the same each time, also where that takes long.

        Raises:
            UsageError: Says in a sentence which cannot be used, and why.
        """

    @abstractmethod
    def batches(self) -> Iterator[list[Source]]:
        """Read the images, from the first one on each time. Errors as `check`."""

    @abstractmethod
    def close(self) -> None:
        """Give back what was kept on the disk."""


def printable(text: str) -> str:
    """A path as text that can be sent and shown: a file name may hold bytes that are no UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def shown(path: str) -> str:
    """A path as a message may show it: in one line."""
    return "".join(char if char.isprintable() else "?" for char in printable(path)[:_MAX_SHOWN_CHARS])


def quoted(text: str) -> str:
    """What somebody wrote, as a message may show it."""
    return repr(printable(text)[:200])


def chosen(reading: ReadOptions) -> Callable[[str], object]:
    """Make a test that is true of the paths below a folder or prefix which are wanted."""
    included, excluded = _any_of(reading.include), _any_of(reading.exclude)
    wanted = included.match if included else _IMAGE.search
    if excluded is None:
        return wanted
    unwanted = excluded.match
    return lambda below: wanted(below) and not unwanted(below)


class LeftOut(Counter[str]):
    """Counts, by suffix, the files of a folder or prefix that are no images by their names."""

    def __init__(self, reading: ReadOptions) -> None:
        super().__init__()
        # Who says by patterns what is wanted knows what is not.
        self._none = bool(reading.include)
        self._excluded = _any_of(reading.exclude)

    def see(self, below: str) -> None:
        """Count a file that was not taken, if its suffix is the reason."""
        if self._none or (self._excluded and self._excluded.match(below)):
            return
        suffix = shown(os.path.splitext(below)[1].lower()) or _NO_SUFFIX
        self[suffix if suffix in self or len(self) < _SUFFIXES_COUNTED else _OTHERS] += 1


def said_of_left_out(counts: Mapping[str, int]) -> str:
    """What was left out, in a line; nothing where nothing was."""
    most = sorted(counts.items(), key=lambda counted: (counted[0] == _OTHERS, -counted[1], counted[0]))
    words = [f"{count:,} {suffix[:_SUFFIX_CHARS]}" for suffix, count in most[:_SUFFIXES_SHOWN]]
    if rest := sum(count for _, count in most[_SUFFIXES_SHOWN:]):
        words.append(f"{rest:,} {_OTHERS}")
    return ", ".join(words)


def said_of_nothing(reading: ReadOptions, left_out: Mapping[str, int]) -> str:
    """What was looked for where nothing was found."""
    if not reading.include and not reading.exclude:
        words = said_of_left_out(left_out)
        return f"looked for {', '.join(sorted(SUFFIXES))}" + (f"; left out: {words}" if words else "")
    patterns = [f"--include {text}" for text in reading.include] + [f"--exclude {text}" for text in reading.exclude]
    return f"looked for those of {' '.join(patterns)}"


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(translate, patterns))) if patterns else None


def check_image(path: str, more: str = "") -> None:
    """Make sure that a local file can be uploaded as an image.

    Args:
        path: Where it is.
        more: What else there could be in its place, for the message.

    Raises:
        UsageError: It is none by its suffix, or cannot be read.
    """
    suffix = os.path.splitext(path)[1]
    if suffix and suffix.lower() not in SUFFIXES:
        raise UsageError(f"{shown(path)} is not an image: {', '.join(sorted(SUFFIXES))} are{more}")
    check_readable(path)


def check_readable(path: str) -> None:
    """Make sure that a file may be read. Raises UsageError."""
    if not os.access(path, os.R_OK):
        raise UsageError(f"{shown(path)} cannot be read: check its permissions")
