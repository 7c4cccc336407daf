"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from producer.jobs.model.text import NAME_CHARS, shown

_NEAREST = 5


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Give the end of an error's sentence: the names most like the one that is not known."""
    if len(wanted) > NAME_CHARS:
        return ""  # comparing takes time by the square of the length
    near = difflib.get_close_matches(
        wanted, [name for name in known if len(name) <= NAME_CHARS], n=_NEAREST, cutoff=0.4
    )
    return f"; the nearest are {', '.join(map(shown, near))}" if near else ""
