"""Names of files, as texts."""

from __future__ import annotations

import os


def printable(text: str) -> str:
    """A path as text that can be sent and shown: a file name may hold bytes that are no UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
