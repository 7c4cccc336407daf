"""What this process waits for now: calls to servers, and stages of work, from their beginning to their end.

with waiting("the object store"):
    client.put_object(...)

A server that stands still answers nothing and fails nothing; whoever wants to know asks `longest`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

REDIS: Final = "Redis"
STORE: Final = "the object store"
#: A server that has been waited for so long is what a process waits for, whatever its own stages do.
SERVER_AFTER_S: Final = 10.0


@dataclass
class Waiting:
    """One call or stage under way."""

    what: str
    #: Whether it is a server; else it is work of this process's own.
    server: bool
    #: When it began, or last went on, in seconds of the monotonic clock.
    since: float = field(default_factory=time.monotonic)

    def moved(self, _count: int = 0) -> None:
        """Take note that it goes on: a large object takes its time. Takes what boto3 counts, too."""
        self.since = time.monotonic()

    @property
    def age_s(self) -> float:
        """For how long."""
        return time.monotonic() - self.since


_lock = threading.Lock()
_numbers = itertools.count()
_under_way: dict[int, Waiting] = {}


@contextmanager
def waiting(what: str, *, server: bool = True) -> Iterator[Waiting]:
    """Register that something is under way, in any thread; also a decorator."""
    number, entry = next(_numbers), Waiting(what, server)
    with _lock:
        _under_way[number] = entry
    try:
        yield entry
    finally:
        with _lock:
            del _under_way[number]


def longest() -> Waiting | None:
    """What has been under way for longest: a server, where one has been waited for long; None where nothing is."""
    with _lock:
        entries = list(_under_way.values())
    servers = [entry for entry in entries if entry.server and entry.age_s >= SERVER_AFTER_S]
    return min(servers or entries, key=lambda entry: entry.since, default=None)
