"""What the user names becomes a stream of images: addresses as they are, local files and folders to be uploaded.

| argument                                | becomes                                                     |
|-----------------------------------------|-------------------------------------------------------------|
| `s3://bucket/key`                       | that object                                                 |
| `http://…`, `https://…`                 | that address, fetched by the worker                         |
| `file:///path`                          | that file *on the workers' machines*, where they allow it   |
| a file                                  | that file, uploaded under the job                           |
| a folder                                | every image under it, sorted by path, uploaded under the job |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from producer.jobs import uris
from producer.jobs.errors import FetchError, UsageError

#: What a folder is searched for; all of it is what the worker decodes.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Source:
    """One image, as the user named it: an address, or a local file that must be uploaded first."""

    uri: str | None = None
    path: Path | None = None
    #: What the user calls it; a local file's path when absent.
    id: str | None = None
    #: The class of this image alone, by number or by name.
    class_id: int | None = None
    class_name: str | None = None


def expand(arguments: Iterable[str | os.PathLike[str] | Source]) -> list[Source]:
    """Turn arguments into images; nothing is sent before all of them are known to be usable.

    Raises:
        UsageError: An argument is no address, file or folder of images; names it and says what is allowed.
    """
    if isinstance(arguments, str | os.PathLike):
        raise UsageError("images must be a list of addresses, files and folders, not one alone")
    found = [source for argument in arguments for source in _sources(argument)]
    if not found:
        raise UsageError("nothing to explain: name images, folders or addresses (`gradcam submit photos/`)")
    return found


def printable(text: str) -> str:
    """A path as text that can be sent and shown: a file name may hold bytes that are no UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")


def _sources(argument: str | os.PathLike[str] | Source) -> Iterator[Source]:
    if not isinstance(argument, Source):
        yield from _expand(os.fspath(argument))
        return
    # Checked as if it had been typed; the class and the id of a folder are those of each image in it.
    for source in _expand(argument.uri or os.fspath(argument.path or "")):
        yield replace(source, id=argument.id, class_id=argument.class_id, class_name=argument.class_name)


def _expand(argument: str) -> Iterator[Source]:
    if not argument.strip():
        raise UsageError("an image has an empty name: is a variable of your shell not set?")
    if "://" in argument:
        try:
            address = uris.parse(argument)
        except FetchError as error:
            raise UsageError(str(error)) from None
        if address.scheme == "s3" and argument.endswith("/"):
            raise UsageError(f"{argument} is a prefix, not an image: name the objects under it")
        yield Source(uri=argument)
        return
    path = Path(argument).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        yield _file(path)
    else:
        raise UsageError(
            f"{printable(argument)[:200]!r} is neither a file nor a folder here, nor an address "
            "(s3://, http://, https://, file://)"
        )


def _file(path: Path) -> Source:
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{printable(str(path))} is not an image: {', '.join(sorted(SUFFIXES))} are")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{printable(str(path))} cannot be read: check its permissions")
    return Source(path=path)


def _folder(folder: Path) -> Iterator[Source]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UsageError(f"no images under {folder}: looked for {', '.join(sorted(SUFFIXES))}")
    yield from (_file(path) for path in paths)
