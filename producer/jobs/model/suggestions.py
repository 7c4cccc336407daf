"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NEAREST = 5


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Give the end of an error's sentence: the names most like the one that is not known."""
    near = difflib.get_close_matches(wanted, list(known), n=_NEAREST, cutoff=0.4)
    return f"; the nearest are {', '.join(near)}" if near else ""
