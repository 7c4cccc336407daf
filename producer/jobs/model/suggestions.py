"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from producer.jobs.model.text import NAME_CHARS, shown

_NEAREST = 5
#: From here on a word is another one misspelt: `fetsh`, `time-out`.
_MISSPELT = 0.75


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Give the end of an error's sentence: the names most like the one that is not known."""
    if len(wanted) > NAME_CHARS:
        return ""  # comparing takes time by the square of the length
    near = difflib.get_close_matches(
        wanted, [name for name in known if len(name) <= NAME_CHARS], n=_NEAREST, cutoff=0.4
    )
    if not near:
        return ""
    return f"; the nearest {'is' if len(near) == 1 else 'are'} {', '.join(map(shown, near))}"


def meant(wanted: str, known: Iterable[str]) -> str | None:
    """Give the known name that somebody must have meant, if one is that near."""
    if len(wanted) > NAME_CHARS:
        return None
    return next(iter(difflib.get_close_matches(wanted, known, n=1, cutoff=_MISSPELT)), None)
