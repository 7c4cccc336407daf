"""Folders for one user alone: in the one for temporary files, anybody may have made such a folder first, or a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_ROOT = 0


def make_private(folder: Path) -> Path:
    """Make a folder that only its owner can enter, or close one that is there to others; returns it.

    Raises:
        OSError: It cannot be made, is another user's, or a link that another user made.
    """
    folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    refuse_others(folder)
    # Never through a name: it may be another folder's by now.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(None, "it belongs to somebody else")
        if stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
            os.fchmod(descriptor, stat.S_IRWXU)
    finally:
        os.close(descriptor)
    return folder


def refuse_others(path: Path) -> None:
    """Refuse what is another user's: a file, a folder, or a link, wherever that leads.

    Raises:
        OSError: It is, or it is not there.
    """
    found = path.lstat()
    ours = {os.geteuid(), _ROOT} if stat.S_ISLNK(found.st_mode) else {os.geteuid()}
    if found.st_uid not in ours:
        raise PermissionError(None, "it belongs to somebody else")
