"""What the source of one image is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import shown

#: What images are called, of folders, prefixes, patterns and lists alike; all of it is what the worker decodes.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in ["jpg", "jpeg", "jpe", "jif", "jfif", "mpo", "png", "apng", "bmp", "webp", "gif", "tif", "tiff"]
)


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


def is_within(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, links resolved.

    Args:
        path: What is asked about; need not be there.
        folder: Resolved already, as by `os.path.realpath`.
    """
    found = os.path.realpath(path)
    return found == folder or found.startswith(folder.rstrip("/") + "/")


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
